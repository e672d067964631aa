"""The page: a form, and the pictures that were found. Every request ends in one clear line."""

from pathlib import Path
from urllib.parse import quote

from PIL import Image
from werkzeug.exceptions import HTTPException, NotFound, RequestEntityTooLarge
from werkzeug.routing import Map, Rule
from werkzeug.wrappers import Request, Response

from pretrain.dataset.pictures import decode
from pretrain.report.template import template
from pretrain.search.collection import Answer, Collection

UPLOAD_BYTES = 32 << 20
MOST = 1000  # pictures on one page
_EXAMPLES = 6
_SAMPLES = 24
_EXAMPLE_CHARS = 60
TEXT_CHARS = 1000  # far more than any context holds
_QUERY_PX = 2048  # longer side that is kept of an upload, far above any model's input
_DRAINED_BYTES = 1 << 30  # of an upload that is refused: a browser shows no answer before its end
_URLS = Map(
    [
        Rule("/", endpoint="page", methods=["GET", "POST"]),
        Rule("/picture/<int:row>", endpoint="picture", methods=["GET"]),
    ]
)
_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; img-src 'self' data:; "
    "style-src 'unsafe-inline'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}


class SearchRequest(Request):
    """A request whose body is bounded."""

    max_content_length = UPLOAD_BYTES
    max_form_parts = 10


class SearchPage:
    """A WSGI application over a collection."""

    def __init__(
        self, collection: Collection, name: str, model: str, top: int, hosts: list[str] | None
    ) -> None:
        """name, model: what the page calls the dataset and the model.

        hosts: names that a browser may call this server by, against pages of other sites whose
        name is made to point here; None: any.
        """
        self._collection, self._name, self._model = collection, name, model
        self._top, self._hosts = top, hosts
        rows = collection.samples(_SAMPLES)
        self._samples = [(row, collection.caption(row)) for row in rows]
        texts = dict.fromkeys(text for _, text in self._samples if text)
        self._examples = [text for text in texts if len(text) <= _EXAMPLE_CHARS][:_EXAMPLES]
        self._template = template("search.html", Path(__file__).parent)

    def __call__(self, environ, start_response):  # type: ignore[no-untyped-def]  # WSGI's own
        request = SearchRequest(environ)
        request.trusted_hosts = self._hosts
        try:
            _ = request.host  # SecurityError where it is none of the trusted ones
            endpoint, values = _URLS.bind_to_environ(environ).match()
            response = self._picture(**values) if endpoint == "picture" else self._answer(request)
        except HTTPException as error:
            response = self._page(error=f"{error.name}.", status=error.code or 500)
        response.headers.update(_HEADERS)
        return response(environ, start_response)

    def _answer(self, request: SearchRequest) -> Response:
        text, status = "", 200
        found: Answer | None = None
        told = error = more = ""
        try:
            top = _count(request, self._top)
            following = min(2 * top, MOST, len(self._collection))
            if request.method == "POST":
                told, query = self._read_upload(request)
                found = self._collection.search(query, top)
            elif "like" in request.args:
                row = self._row(request.args["like"])
                found = self._collection.search(self._collection.picture(row), top)
                told = f"the picture “{self._collection.caption(row)}”"
                more = f"/?like={row}&n={following}"
            elif "q" in request.args:
                text = " ".join(request.args["q"].split())
                _check_text(text)
                found, told = self._collection.search(text, top), f"“{text}”"
                more = f"/?q={quote(text, errors='replace')}&n={following}"
            more = more if following > top else ""
        except RequestEntityTooLarge:
            _drain(request)
            error = f"The upload is larger than {UPLOAD_BYTES >> 20} MiB: choose a smaller picture."
            status = 413
        except ValueError as fault:
            line = " ".join(str(fault).split())
            error, status = line[:1].upper() + line[1:] + ".", 400
        return self._page(text=text, told=told, found=found, more=more, error=error, status=status)

    def _row(self, text: str) -> int:
        if not text.isdecimal() or len(text) > 18 or int(text) >= len(self._collection):
            raise ValueError("like= is not the number of a picture; search by words or a file")
        return int(text)

    def _read_upload(self, request: SearchRequest) -> tuple[str, Image.Image]:
        """(its name, the picture) of the form. ValueError says what is wrong with it."""
        file = request.files.get("picture")
        content = b"" if file is None else file.read()
        if file is None or not content:
            raise ValueError("choose a picture to search by first")
        with self._collection.decoding:
            picture = Image.fromarray(decode(content))
            picture.thumbnail((_QUERY_PX, _QUERY_PX), Image.Resampling.BICUBIC)
        return f"the picture {file.filename or 'without a name'}", picture

    def _picture(self, row: int) -> Response:
        if row >= len(self._collection):
            raise NotFound
        try:
            jpeg = self._collection.thumbnail(row)
        except (ValueError, OSError) as fault:
            raise NotFound from fault
        return Response(jpeg, mimetype="image/jpeg", headers={"Cache-Control": "max-age=3600"})

    def _page(
        self,
        *,
        text: str = "",
        told: str = "",
        found: Answer | None = None,
        more: str = "",
        error: str = "",
        status: int = 200,
    ) -> Response:
        page = self._template.render(
            name=self._name,
            model=self._model,
            samples=len(self._collection),
            examples=self._examples,
            shown=self._samples,
            text=text,
            told=told,
            found=found,
            more=more,
            error=error,
            text_chars=TEXT_CHARS,
        )
        # A caption may hold half of a surrogate pair, which is valid JSON but no text.
        return Response(page.encode("utf-8", errors="replace"), status, mimetype="text/html")


def _count(request: SearchRequest, usual: int) -> int:
    """How many pictures are asked for."""
    asked = request.args.get("n", str(usual))
    if not asked.isdecimal() or len(asked) > 4 or not 1 <= int(asked) <= MOST:
        raise ValueError(f"n= is the number of pictures, 1 to {MOST:,}")
    return int(asked)


def _check_text(text: str) -> None:
    if not text:
        raise ValueError("write some words to search by")
    if len(text) > TEXT_CHARS:
        raise ValueError(f"the text has {len(text):,} characters, the most is {TEXT_CHARS:,}")


def _drain(request: SearchRequest) -> None:
    """Take the rest of a refused upload, or the browser says that the connection broke."""
    left = min(request.content_length or 0, _DRAINED_BYTES)
    while left > 0 and (block := request.environ["wsgi.input"].read(min(left, 1 << 20))):
        left -= len(block)
