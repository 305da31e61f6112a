"""``picks``: what was decided about the images of a batch."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from latentfarm.batch import Batch
from latentfarm.cli import options
from latentfarm.cli.index_ranges import parse_indices
from latentfarm.cli.output import echo_err, print_json
from latentfarm.errors import InputError
from latentfarm.farm import Farm

if TYPE_CHECKING:
    from latentfarm.fetch.preferences import PreferenceForm, PreferenceImages
    from latentfarm.storage.pick_state import PickCounts

#: words of --set that remove a pick and a rating
_NO_PICK, _NO_RATING = "none", "unrated"


def picks(
    batch: options.BatchName,
    changes: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="INDICES=WORD",
            help="Decide: picked, rejected, none, 1 to 5, or unrated, such as 3,17-40=picked (repeatable)",
        ),
    ] = None,
    preferences: Annotated[
        Path | None,
        typer.Option("--preferences", metavar="FILE", help="Write pairs of images as Parquet, the preferred one first"),
    ] = None,
    images: Annotated[
        str | None,
        typer.Option(metavar="WORD", help="keys, or bytes: the images are in FILE [default: keys]"),
    ] = None,
    form: Annotated[
        str | None,
        typer.Option(
            "--format", metavar="FORMAT", help="Columns of FILE: preference, or pickapic [default: preference]"
        ),
    ] = None,
    as_json: options.Json = False,
) -> None:
    """List, change or export the picks and ratings of a batch's images.

    A decision is about the image that a job has now; if it is rendered again, the new image has none.

    --preferences pairs the images of each prompt: of a picked and a rejected one the picked is preferred, of two rated
    ones that with more stars. `preference` has the columns prompt, chosen and rejected, which Hugging Face's datasets
    shows; `pickapic` has caption, jpg_0, jpg_1 and label_0, which diffusers' DPO scripts read.

    Example: `latentfarm picks cats --set 3,17-40=picked --set 5=rejected --set 17=5`
    """
    if preferences is None and (images is not None or form is not None):
        raise InputError("--images and --format are options of --preferences; add it, or leave them out")
    found = Farm.from_env().batch(batch)
    if preferences is not None:
        if changes:
            raise InputError("--set and --preferences do not go together; run picks twice")
        _export(found, preferences, images or "keys", form or "preference")
    elif changes:
        _print_counts(_decide(found, changes), as_json=as_json)
    else:
        _list(found, as_json=as_json)


def _decide(batch: Batch, changes: list[str]) -> PickCounts:
    from latentfarm.batch_picks import ImagePick
    from latentfarm.storage.picks import MAX_DECIDED

    wanted: dict[int, dict[str, Any]] = {}
    for text in changes:
        indices, equals, word = text.rpartition("=")
        if not equals:
            raise InputError(f"--set {text!r}: write INDICES=WORD, such as 3,17-40=picked")
        field = _field_of(word.strip())
        for index in parse_indices("--set", indices, most=MAX_DECIDED):
            wanted.setdefault(index, {}).update(field)
    return batch.decide([ImagePick(index, **fields) for index, fields in wanted.items()])


def _field_of(word: str) -> dict[str, Any]:
    from latentfarm.storage.pick_state import MAX_RATING, MIN_RATING, Pick

    ratings = [str(rating) for rating in range(MIN_RATING, MAX_RATING + 1)]
    options.require_choice("--set ...=", word, [*Pick, _NO_PICK, *ratings, _NO_RATING])
    if word in ratings or word == _NO_RATING:
        return {"rating": int(word) if word in ratings else None}
    return {"pick": None if word == _NO_PICK else Pick(word)}


def _list(batch: Batch, *, as_json: bool) -> None:
    decisions = batch.picks()
    counts = batch.journal.counts()
    if as_json:
        print_json({"picks": [asdict(each) for each in decisions], **asdict(counts)})
        return
    for each in decisions:
        typer.echo(f"{batch.name}/{each.index}  {each.pick or '-':<8}  {each.rating or '-'}")
    echo_err(_text_of(counts))


def _print_counts(counts: PickCounts, *, as_json: bool) -> None:
    if as_json:
        print_json(asdict(counts))
    else:
        typer.echo(_text_of(counts))


def _text_of(counts: PickCounts) -> str:
    return f"{counts.picked:,} picked, {counts.rejected:,} rejected, {counts.rated:,} rated"


def _export(batch: Batch, file: Path, images: str, form: str) -> None:
    from latentfarm.fetch.atomic_files import atomic_write
    from latentfarm.fetch.preferences import PREFERENCE_FORMS, PREFERENCE_IMAGES

    options.require_choice("--images", images, PREFERENCE_IMAGES)
    options.require_choice("--format", form, PREFERENCE_FORMS)
    pieces = batch.preferences(images=cast("PreferenceImages", images), form=cast("PreferenceForm", form))
    with atomic_write(file) as opened:
        for piece in pieces:
            opened.write(piece)
    echo_err(f"preference set: {file}")
