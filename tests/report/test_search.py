"""The search page: a real server answers texts and pictures as float64 brute force does."""

import html
import io
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
import uuid
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from data_prep_corpus import encoded, options, picture, write_corpus, write_tar
from loopback import served
from PIL import Image
from tiny_models import write_untrained
from tiny_runs import ROOT
from werkzeug.test import Client

import pretrain
from data_prep.__main__ import main as data_prep
from data_prep.build.pipeline import build_dataset
from pretrain.dataset.pictures import decode
from pretrain.dataset.reader import Dataset
from pretrain.search.collection import Collection
from pretrain.search.page import SearchPage
from pretrain.search.server import REQUESTS_AT_ONCE, BoundedServer, QuietHandler

NASTY = 'apple <i>&amp; "pear"</i>'
TOP = 7
SHOWN = 5e-4 + 1e-5  # the page's rounding, and fp32's
CARD = re.compile(
    r'title="sample (.*?)">.*?/picture/(\d+)".*?class="caption">(.*?)</span>.*?<b>(.*?)</b>'
    r".*?width: (\d+)%",
    re.S,
)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("search")
    files = [encoded(picture(number)) for number in range(40)]
    captions = [NASTY, *(f"drawing number {number}" for number in range(1, 40))]
    source = write_corpus(folder / "source.parquet", {"image": files, "caption": captions})
    build_dataset(options(source, folder / "set", tiers="full:95"))
    return folder / "set"


@pytest.fixture(scope="module")
def model(dataset, tmp_path_factory) -> Path:
    return write_untrained(tmp_path_factory.mktemp("search_model") / "model", dataset)


@pytest.fixture(scope="module")
def url(model, dataset):
    """A server in a process of its own, on a free port."""
    command = [sys.executable, "-m", "pretrain.search", model, dataset, "--port", "0"]
    with subprocess.Popen(
        [*map(str, command), "--top", str(TOP)], cwd=ROOT, stdout=subprocess.PIPE, text=True
    ) as server:
        assert server.stdout is not None
        told = server.stdout.readline() + server.stdout.readline()
        found = re.search(r"http://127\.0\.0\.1:\d+/", told)
        assert found, "the server did not start"
        yield found[0]
        server.terminate()


def get(address: str, **more) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(urllib.request.Request(address, **more)) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def upload(url: str, content: bytes, name: str = "mine.png") -> tuple[int, str]:
    mark = uuid.uuid4().hex
    head = f'--{mark}\r\nContent-Disposition: form-data; name="picture"; filename="{name}"\r\n\r\n'
    body = head.encode() + content + f"\r\n--{mark}--\r\n".encode()
    kind = {"Content-Type": f"multipart/form-data; boundary={mark}"}
    return get(url, data=body, headers=kind, method="POST")


def error_line(page: str) -> str:
    (line,) = re.findall(r'role="alert">(.*?)</p>', page, re.S)
    assert "\n" not in line and "<figure" not in page
    return html.unescape(line)


def check_answer(page: str, dataset: Path, query: np.ndarray, vectors: np.ndarray) -> None:
    """The shown cards are the nearest, in order, each with its own score, key and caption."""
    scores = vectors @ query
    cards = CARD.findall(page)
    assert len(cards) == TOP and not re.search(r">[0-9a-f]{16}<", page)
    opened = Dataset(dataset, "full")
    rows = [int(row) for _, row, *_ in cards]
    median = np.median(scores)
    assert f"half of the dataset lies below {median:.3f}" in page
    for row, (key, _, caption, score, share) in zip(rows, cards, strict=True):
        wanted = 100 * (scores[row] - median) / (scores.max() - median)
        assert abs(int(share) - wanted) < 0.6, (share, wanted)
        (own,) = opened.read_json(row)["captions"].values()
        assert (key, caption) == (opened.key(row), html.escape(own).replace("&quot;", "&#34;"))
        assert abs(float(score) - scores[row]) < SHOWN, (row, score, scores[row])
    wanted = np.sort(scores)[::-1][:TOP]
    worst = np.abs(scores[rows] - wanted).max()
    assert worst < 1e-6, f"largest difference {worst:.1e}"
    assert len(set(rows)) == TOP


@pytest.fixture(scope="module")
def vectors(model, dataset) -> np.ndarray:
    """(n, E) float64 of all pictures, by row."""
    opened = Dataset(dataset, "full")
    pictures = [Image.open(io.BytesIO(opened.read(row).jpeg)) for row in range(len(opened))]
    return pretrain.load(model).encode_image(pictures).double().numpy()


def test_a_text_and_a_picture_find_what_brute_force_finds(url, model, dataset, vectors):
    loaded = pretrain.load(model)
    for text in ("drawing number 3", NASTY, "ü 木"):
        status, page = get(url + "?q=" + urllib.parse.quote(text))
        assert status == 200
        query = loaded.encode_text([text])[0].double().numpy()
        check_answer(page, dataset, query, vectors)
        assert f"“{html.escape(text).replace('&quot;', '&#34;')}”" in page
        assert "<i>" not in page
    mine = encoded(picture(99))
    status, page = upload(url, mine, "<b>mine</b>.png")
    query = loaded.encode_image([Image.open(io.BytesIO(mine))])[0].double().numpy()
    assert status == 200 and "<b>mine" not in page and "&lt;b&gt;mine" in page
    check_answer(page, dataset, query, vectors)


def test_the_start_page_offers_queries_and_pictures_that_answer(url, model, dataset, vectors):
    status, page = get(url)
    assert status == 200 and "40 pictures" in page and "the model model." in page
    queries = re.findall(r'href="(/\?q=[^"]*)"', page)
    likes = re.findall(r'href="/\?like=(\d+)"', page)
    assert len(queries) == 6 and len(likes) == len(set(likes)) == 24
    assert CARD.findall(get(url + html.unescape(queries[-1])[1:])[1])
    row = int(likes[5])
    status, page = get(f"{url}?like={row}")
    assert status == 200 and int(CARD.findall(page)[0][1]) == row  # the nearest to itself
    check_answer(page, dataset, vectors[row], vectors)
    (more,) = re.findall(r'class="more" href="/([^"]*)"', page)
    assert len(CARD.findall(get(url + html.unescape(more))[1])) == 2 * TOP
    assert 'class="more"' not in get(f"{url}?like={row}&n=40")[1]  # there are no more


def test_bad_input_is_answered_by_one_line(url):
    whole = encoded(picture(5))
    large = io.BytesIO()
    Image.new("1", (8001, 8000)).save(large, "PNG")
    bomb = io.BytesIO()
    Image.new("1", (20000, 20000)).save(bomb, "PNG")
    for (status, page), code, told in (
        (get(url + "?q="), 400, "Write some words"),
        (get(url + "?q=%20%0a"), 400, "some words"),
        (get(url + "?q=" + "x" * 1001), 400, "1,001 characters"),
        (get(url + "?q=x&n=0"), 400, "1 to 1,000"),
        (get(url + "?q=x&n=1001"), 400, "1 to 1,000"),
        (get(url + "?like=40"), 400, "not the number of a picture"),
        (get(url + "?like=../3"), 400, "not the number of a picture"),
        (upload(url, b""), 400, "Choose a picture"),
        (get(url, data=b"{}", method="POST"), 400, "Choose a picture"),
        (upload(url, b"no picture"), 400, "whole picture of JPEG"),
        (
            upload(url, b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"),
            400,
            "whole picture of",
        ),
        (upload(url, whole[: len(whole) // 2]), 400, "image file is truncated"),
        (upload(url, large.getvalue()), 400, "8001 x 8000 pixels: over the cap of 64,000,000"),
        (upload(url, bomb.getvalue()), 400, "ver the cap of 64,000,000"),
        (upload(url, bytes(33 << 20)), 413, "larger than 32 MiB"),
        (get(url, headers={"Host": "elsewhere.example"}), 400, "Bad Request"),
        (get(url + "picture/40"), 404, "Not Found"),
        (get(url + "picture/..%2f..%2fmanifest.json"), 404, "Not Found"),
        (get(url + "manifest.json"), 404, "Not Found"),
        (get(url + "?q=x", method="DELETE"), 405, "Method Not Allowed"),
    ):
        assert status == code and told in (line := error_line(page)), (status, line)
    assert get(url)[0] == 200 and "alert" not in get(url)[1]


def test_requests_that_send_nothing_hold_nobody_up(model, dataset, monkeypatch):
    """More of them than are answered at once, each half sent; they are cut off."""
    monkeypatch.setattr(QuietHandler, "timeout", 1.0)
    page = SearchPage(Collection(pretrain.load(model), dataset, None, 16), "set", "m", TOP, None)
    with served(BoundedServer("127.0.0.1", 0, page)) as server:
        address = ("127.0.0.1", server.server_port)
        idle = [socket.create_connection(address) for _ in range(REQUESTS_AT_ONCE + 8)]
        for one in idle:
            one.sendall(b"POST / HTTP/1.1\r\nContent-Length: 1000\r\n")
        begin = time.monotonic()
        assert get(f"http://127.0.0.1:{server.server_port}/")[0] == 200
        assert 0.5 < time.monotonic() - begin < 10
        for one in idle:
            one.close()


def test_uploads_at_once_are_decoded_one_by_one(model, dataset, monkeypatch):
    at_once, most = 0, 0

    def slow_decode(content: bytes) -> np.ndarray:
        nonlocal at_once, most
        at_once += 1
        most = max(most, at_once)
        time.sleep(0.05)
        at_once -= 1
        return decode(content)

    monkeypatch.setattr("pretrain.search.page.decode", slow_decode)
    page = SearchPage(Collection(pretrain.load(model), dataset, None, 16), "set", "m", TOP, None)
    client = Client(page)

    def send(number: int) -> int:
        form = {"picture": (io.BytesIO(encoded(picture(number))), "a.png")}
        return client.post("/", data=form).status_code

    with ThreadPoolExecutor(6) as pool:
        assert list(pool.map(send, range(6))) == [200] * 6
    assert most == 1


def test_thumbnails_of_turned_pictures_are_upright(model, tmp_path):
    turned = Image.new("RGB", (600, 400), "white")
    turned.paste("black", (0, 0, 300, 400))
    exif = Image.Exif()
    exif[0x0112] = 6
    (tmp_path / "tars").mkdir()
    for size in (turned.size, (300, 200)):
        content = io.BytesIO()
        turned.resize(size).save(content, "JPEG", exif=exif)
        write_tar(
            tmp_path / f"tars/{size[0]}.tar", {"a.jpg": content.getvalue(), "a.txt": b"halves"}
        )
    more = ["--vocab-size", "300", "--tagger", "none", "--workers", "1"]
    assert data_prep(["index", str(tmp_path / "tars"), "--out", str(tmp_path / "set"), *more]) == 0
    collection = Collection(pretrain.load(model), tmp_path / "set", None, 16)
    for row in range(2):
        shown = np.asarray(Image.open(io.BytesIO(collection.thumbnail(row))).convert("L"))
        assert shown.shape[0] > shown.shape[1]
        middle = len(shown) // 2
        assert shown[: middle - 9].mean() < 10 and shown[middle + 9 :].mean() > 245


def test_thumbnails_are_the_datasets_pictures(url, dataset):
    with urllib.request.urlopen(url + "picture/3") as answer:
        assert answer.headers["Content-Type"] == "image/jpeg"
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
        shown = Image.open(io.BytesIO(answer.read())).convert("RGB")
    own = Image.open(io.BytesIO(Dataset(dataset, "full").read(3).jpeg)).convert("RGB")
    assert shown.tobytes() == own.tobytes()


def test_embeddings_are_used_where_they_fit(model, dataset, vectors, tmp_path):
    copy = Path(shutil.copytree(dataset, tmp_path / "set"))
    assert data_prep(["embed", str(model), str(copy), "--out", "own"]) == 0
    loaded, other = pretrain.load(model), write_untrained(tmp_path / "other", dataset, image_px=40)
    found = Collection(loaded, copy, None, 64)
    assert found.source == f"embeddings {copy / 'embeddings/own'}"
    scores = vectors @ loaded.encode_text(["cup"])[0].double().numpy()
    for match in found.search("cup", 40).matches:
        assert abs(match.score - scores[match.row]) < 2**-9  # stored as float16
    assert Collection(pretrain.load(other), copy, None, 64).source == "pictures embedded now"
    with pytest.raises(ValueError, match="made by another model"):
        Collection(pretrain.load(other), copy, "own", 64)


def test_a_phone_shows_it_without_scrolling_sideways(url, tmp_path):
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    if chromium is None:
        pytest.skip("no chromium on this machine")
    shot = tmp_path / "shot.png"
    subprocess.run(
        [chromium, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars",
         f"--user-data-dir={tmp_path / 'profile'}", f"--screenshot={shot}",
         "--window-size=390,1200", f"{url}?q={'long' * 60}"],
        check=True, capture_output=True, timeout=100,
    )  # fmt: skip
    pixels = np.asarray(Image.open(shot).convert("RGB"))
    assert pixels.shape[1] == 390
    assert (pixels[:, -6:] == pixels[0, 0]).all(), "something reaches the right edge"
    assert len(np.unique(pixels[600:].reshape(-1, 3), axis=0)) > 500, "no pictures are drawn"
