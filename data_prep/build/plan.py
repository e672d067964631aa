"""What a build is to do: options checked, the tokenizer trained, the corpus cut into tasks."""

import hashlib
import sys
from bisect import bisect_right
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from data_prep.build import in_place
from data_prep.build.far import (
    bring_plan,
    check_apart_there,
    check_work,
    claim,
    clear_store,
    remove_work_there,
    send_plan,
)
from data_prep.build.first_pass import selected_rows, train_on_corpus
from data_prep.build.options import BuildOptions
from data_prep.build.request import begun_at, describe_request, differing
from data_prep.build.tasks import (
    CAPTIONS_LEFT_OUT,
    WORK_FOLDER,
    Plan,
    Task,
    TierPlan,
    clear,
    has_plan,
    look_folder,
    read_plan,
    remove_work,
    write_look,
    write_plan,
)
from data_prep.build.work import BuildJob, templates_of, writing
from data_prep.sources import Corpus
from data_prep.sources.column_choice import DEFAULT_CAPTION_COLUMN
from data_prep.sources.look import Looking
from data_prep.text.captions import CaptionTemplate
from data_prep.text.word_classes import load_spacy
from pretrain.base.files import write_durably
from pretrain.base.lock import locked_aloud
from pretrain.dataset.manifest import (
    MANIFEST_FILE,
    TokenizerInfo,
    read_manifest,
    side_of,
    token_dtype,
)
from pretrain.tokens.given import read_given
from pretrain.tokens.tokenizer import is_json, open_tokenizer, parse_tokenizer

_TOKENIZER_FILES = {False: "tokenizer.model", True: "tokenizer.json"}  # whether it is the latter


def prepare(options: BuildOptions) -> BuildJob | None:
    """The build as it was begun, or a new one. None if the very same one is finished."""
    out = options.writer.folder
    if out.exists() and not out.is_dir():
        raise FileExistsError(f"out={out} is a file; choose another --out")
    if options.tagging.tagger == "spacy":
        load_spacy()  # says now what is not installed
    if options.in_place is not None:
        in_place.check_here(options)
    store = options.writer.store
    check_work(store, out)
    if store is not None:
        with locked_aloud(out / WORK_FOLDER, "the plan"):
            bring_plan(store)
        _refuse_unplanned(options)
    corpus = open_corpus(options)
    if store is not None:
        check_apart_there(store, options.source.source, corpus.addresses)
        claim(store)
    if options.in_place is not None:
        in_place.check_apart(corpus, options)
    templates = templates_of(options, corpus)
    state = corpus.source.state()
    request = describe_request(options, corpus, templates)
    if _is_finished(options, request):
        return None
    with writing(out):
        (out / WORK_FOLDER).mkdir(parents=True, exist_ok=True)
    with locked_aloud(out / WORK_FOLDER, "the plan"):  # of many shares, the first one plans for all
        if _is_finished(options, request):  # by another process, meanwhile
            return None
        replaced = (out / MANIFEST_FILE).exists()
        plan = None if replaced else read_plan(out)
        if plan is not None and not options.writer.overwrite:
            _refuse_other(
                options, request, plan.request, plan.tokenizer, "holds an unfinished build"
            )
            refuse_changed(options, state, plan)
        if (
            plan is None
            or plan.source_state != state
            or any(_what_differs(options, request, plan.request, plan.tokenizer))
        ):
            _say_what_was_chosen(corpus, options)
            if store is not None:
                _refuse_to_plan(options)
            plan = _plan_anew(options, corpus, templates, request, state)
        if store is not None:
            send_plan(store)
    return BuildJob(options=options, corpus=corpus, plan=plan)


def _refuse_unplanned(options: BuildOptions) -> None:
    """FileNotFoundError where a share cannot know whether another one plans: it sees no lock of
    another machine's."""
    out = options.writer.folder
    planned = has_plan(out) or ((out / MANIFEST_FILE).exists() and not options.writer.overwrite)
    if not planned and options.run.task_index is not None and not options.run.plan_only:
        raise FileNotFoundError(
            f"--out={options.writer.out} is not planned yet, and shares on several machines cannot "
            "wait for each other there: give the same command once with --plan-only first"
        )


def _refuse_to_plan(options: BuildOptions) -> None:
    """FileExistsError where a share would clear what others have made there."""
    if options.run.task_index is not None and not options.run.plan_only:
        raise FileExistsError(
            f"--out={options.writer.out} is planned otherwise than this share asks for: give the "
            "options of the command that planned it"
        )


def open_corpus(options: BuildOptions) -> Corpus:
    """The corpus; what was found in its files is kept until the plan is written."""
    out = options.writer.folder
    looking = Looking(folder=look_folder(out), options=options.run)
    try:
        return Corpus(options.source, *begun_at(options), looking)
    except (ValueError, FileNotFoundError):
        if not has_plan(out) and look_folder(out).exists():
            remove_work(out)
            with suppress(OSError):  # another command's files are in it
                out.rmdir()
        raise


def _is_finished(options: BuildOptions, request: dict[str, Any]) -> bool:
    """Whether `out` holds the very dataset that is asked for, and is not to be built again."""
    out = options.writer.folder
    if options.writer.overwrite or not (out / MANIFEST_FILE).exists():
        return False
    manifest = read_manifest(out)
    found = {**manifest.provenance, "rows_selected": None, CAPTIONS_LEFT_OUT: None}
    _refuse_other(options, request, found, manifest.tokenizer, "already holds a dataset")
    remove_work(out)  # a kill may have left it
    if options.writer.store is not None:
        remove_work_there(options.writer.store)
    print(f"note: {out} is finished; --overwrite builds it again", file=sys.stderr)
    return True


def _plan_anew(
    options: BuildOptions,
    corpus: Corpus,
    templates: list[CaptionTemplate],
    request: dict[str, Any],
    state: str,
) -> Plan:
    """Train the tokenizer, cut the corpus into tasks, and write both in the place of what was."""
    out = options.writer.folder
    # Before `out` is cleared: a given tokenizer may lie there, and a corpus without a caption must
    # not cost the dataset that it was to replace.
    try:
        given = given_model(options)
        model = train_on_corpus(corpus, templates, options) if given is None else given
        tasks = _plan_tasks(corpus, options)
        if not tasks:
            raise ValueError(
                f"no row of {options.source.source} passes where={options.source.where!r}; "
                "change --where"
            )
    except ValueError:
        if read_plan(out) is None:
            remove_work(out)
        raise
    tiers = tiers_of(options)
    with writing(out):
        clear(out, [tier.name for tier in tiers])
        if (store := options.writer.store) is not None:
            clear_store(store)
        file = _TOKENIZER_FILES[is_json(model)]
        write_durably(out / file, model)
        (out / _TOKENIZER_FILES[not is_json(model)]).unlink(missing_ok=True)  # of what was replaced
        tokenizer = _tokenizer_info(out / file)
        plan = Plan(
            request=request,
            source_state=state,
            tasks=tasks,
            captions=[template.name for template in templates],
            token_dtype=token_dtype(tokenizer.vocab_size).str,
            tiers=tiers,
            tokenizer=tokenizer,
            tagger=options.tagging.tagger,
            pictures_root=in_place.pictures_root(corpus, options),
            store=None if options.writer.store is None else options.writer.store.address,
        )
        if corpus.look is not None:
            write_look(out, corpus.look)
        write_plan(out, plan)
    return plan


def tiers_of(options: BuildOptions) -> list[TierPlan]:
    """The tiers by size: the smallest holds the texts."""
    tiers = [TierPlan(**asdict(tier)) for tier in options.stored_tiers] or [in_place.TIER]
    return sorted(tiers, key=lambda tier: side_of(tier.shortest_px))


def given_model(options: BuildOptions) -> bytes | None:
    """The file of a given tokenizer as a dataset holds it; ValueError if it is none."""
    given = options.vocabulary.tokenizer
    if given is None:
        return None
    model = read_given(given, options.vocabulary.special_tokens)
    parse_tokenizer(given, model)
    return model


def _plan_tasks(corpus: Corpus, options: BuildOptions) -> list[Task]:
    """The tasks of the whole corpus; where pictures stay in place, each of one tar."""
    if options.in_place is None:
        return _cut_tasks(corpus, options, [])
    tasks = _cut_tasks(corpus, options, in_place.tar_borders(corpus))
    return in_place.with_pictures(corpus, options, tasks)


def _cut_tasks(corpus: Corpus, options: BuildOptions, borders: list[int]) -> list[Task]:
    """Ranges of the source's rows, in each of which so many pass --where; fewer in the last.

    borders: rows, ascending, at which a range ends in any case.
    """
    tasks: list[Task] = []
    task_rows = options.writer.shard_samples

    def cut(numbers: np.ndarray) -> None:
        for first in range(0, len(numbers), task_rows):
            group = numbers[first : first + task_rows]
            tasks.append(Task(start=int(group[0]), stop=int(group[-1]) + 1, rows=len(group)))

    held = np.empty(0, np.int64)
    for numbers in selected_rows(corpus, options):
        held = np.concatenate([held, numbers])
        if not len(held):
            continue
        inside = borders[bisect_right(borders, held[0]) : bisect_right(borders, held[-1])]
        *ended, held = np.split(held, np.searchsorted(held, inside))
        for piece in ended:
            cut(piece)
        whole = len(held) // task_rows * task_rows
        cut(held[:whole])
        held = held[whole:]
    cut(held)
    return tasks


def _what_differs(
    options: BuildOptions, request: dict[str, Any], found: dict[str, Any], tokenizer: TokenizerInfo
) -> Iterator[str]:
    """Dotted names of what is asked for now and is not as `out` was begun or built."""
    yield from differing(found, request, "")
    given = given_model(options)
    # By name it may be the same.
    if given is not None and hashlib.sha256(given).hexdigest() != tokenizer.sha256:
        yield "options.vocabulary.tokenizer"


def _refuse_other(
    options: BuildOptions,
    request: dict[str, Any],
    found: dict[str, Any],
    tokenizer: TokenizerInfo,
    state: str,
) -> None:
    """FileExistsError that names what differs from what `out` was begun or built with."""
    other = list(dict.fromkeys(_what_differs(options, request, found, tokenizer)))
    if other:
        raise FileExistsError(
            f"out={options.writer.out} {state} made with other {', '.join(other[:6])}; give the "
            "same options to go on, choose another --out or add --overwrite"
        )


def refuse_changed(options: BuildOptions, state: str, plan: Plan) -> None:
    """FileExistsError where the corpus is not in the state in which `out` was begun: parts of both
    would be mixed."""
    if state != plan.source_state:
        raise FileExistsError(
            f"source={options.source.source}: the sizes or times of its files have changed since "
            f"out={options.writer.out} was begun; add --overwrite to begin anew, or put the files "
            "back (copies keep their times by cp -p or rsync -t)"
        )


def _say_what_was_chosen(corpus: Corpus, options: BuildOptions) -> None:
    """On stderr, a line each: what was decided for the user, and what is left alone."""
    notes = list(corpus.source.notes)
    if not options.captions.caption and corpus.caption_column != DEFAULT_CAPTION_COLUMN:
        notes.append(f"captions are read from column {corpus.caption_column!r}")
    if options.in_place is not None:
        notes.append(in_place.NOTE)
    for note in notes:
        print(f"note: {note}", file=sys.stderr)


def _tokenizer_info(path: Path) -> TokenizerInfo:
    """The manifest's entry for the dataset's tokenizer."""
    tokenizer = open_tokenizer(path)
    vocabulary = tokenizer.vocabulary
    return TokenizerInfo(
        file=path.name,
        sha256=tokenizer.sha256,
        vocab_size=vocabulary.size,
        pad_id=vocabulary.pad_id,
        bos_id=vocabulary.bos_id,
        eos_id=vocabulary.eos_id,
        unk_id=tokenizer.unk_id,
    )
