"""`POST /v1/sheets`: the clips of several jobs side by side in one file."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any, Literal

from fastapi import APIRouter, Request, Response
from pydantic import Field

from cosmorama.api.body import read_json
from cosmorama.api.clips import DiscardedFile
from cosmorama.api.dialects.wire import Few, WireModel
from cosmorama.api.services import Services, ServicesOf, owner_of, while_wanted
from cosmorama.errors import InvalidRequestError, Problem
from cosmorama.grid.sheet import Sheet, write_sheet
from cosmorama.jobs.files import discard
from cosmorama.jobs.model import Job

MAX_CELLS = 64
_MAX_BODY_BYTES = 200_000

router = APIRouter(prefix="/v1/sheets", tags=["jobs"])


class SheetBody(WireModel):
    """Which clips go where, and what is written beside them."""

    rows: Few[Few[str | None]] = Field(description="Ids of succeeded jobs from left to right; null: an empty cell.")
    columns: Few[str] = Field(default_factory=list, description="What is written above the columns.")
    row_titles: Few[str] = Field(default_factory=list, description="What is written before the rows.")
    format: Literal["mp4", "png"] = "mp4"
    frame: int | None = Field(None, ge=0, description="For png: which frame, from 0; null: the middle one.")


_FILES: dict[int | str, dict[str, Any]] = {
    200: {"description": "The file.", "content": {"video/mp4": {}, "image/png": {}}},
}


@router.post(
    "",
    summary="Several clips side by side in one file",
    response_class=Response,
    responses=_FILES,
    openapi_extra={
        "requestBody": {"required": True, "content": {"application/json": {"schema": SheetBody.model_json_schema()}}}
    },
)
async def sheet(request: Request, services: ServicesOf) -> Response:
    """An MP4 that plays all of them in step, or a PNG of one moment."""
    body = await read_json(request, SheetBody, _MAX_BODY_BYTES)
    count = sum(len(row) for row in body.rows)
    if not count or count > MAX_CELLS or not any(any(row) for row in body.rows):
        raise InvalidRequestError(Problem("rows", f"{count} cells", f"1 to {MAX_CELLS}, one of them with a clip"))
    owner = owner_of(request)
    found = [
        [None if name is None else await services.jobs.get(name, owner=owner) for name in row] for row in body.rows
    ]
    output = await while_wanted(request, _made(found, body, services, owner))
    media_type = "video/mp4" if body.format == "mp4" else "image/png"
    return DiscardedFile(output, media_type=media_type, filename=output.name)


async def _made(found: list[list[Job | None]], body: SheetBody, services: Services, owner: str) -> Path:
    """The sheet, in a folder of its own."""
    clips: list[Path] = []
    try:
        async with services.sheets.turn(owner) as call:
            rows = []
            for jobs in found:
                rows.append([None if job is None else await services.jobs.checkout(job) for job in jobs])
                clips += [clip for clip in rows[-1] if clip is not None]
            # Beside the first clip, so that it goes with its folder.
            output = clips[0].with_name(f"sheet.{body.format}")
            plan = Sheet(rows, body.columns, body.row_titles)
            await call(partial(write_sheet, plan, output, format=body.format, frame=body.frame))
    except BaseException:
        for clip in clips:
            discard(clip)
        raise
    for clip in clips[1:]:
        discard(clip)
    return output
