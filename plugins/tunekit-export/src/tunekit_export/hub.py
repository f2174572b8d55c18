"""Pushing an export to a model hub with huggingface_hub: one commit, and a look at whether all of it is there."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

from tunekit.errors import ExportError
from tunekit.exporting import DETAILS, judge_earlier
from tunekit.values import Exported, ExportRequest

if TYPE_CHECKING:
    from . import HubConfig


def push(config: HubConfig, request: ExportRequest) -> Exported:
    """Upload an earlier export, once it is seen to be within what it accepted. Its own comparison is told of it."""
    name, folder = _chosen(config, request)
    found = judge_earlier(name, folder)
    try:
        commit, url = _upload(config, folder)
    except (HfHubHTTPError, OfflineModeIsEnabled, OSError) as error:
        remedy = "see that the hub can be reached and that `hf auth login` knows an owner of the repository"
        raise ExportError(f"{name} cannot be pushed to {config.repository}: {error}", remedy) from error
    facts = {"of": name, "repository": config.repository, "commit": commit, "url": url}
    return Exported(found, facts, f"## Where it is\n\n{url}", of=name)


def _chosen(config: HubConfig, request: ExportRequest) -> tuple[str, Path]:
    made = {name: path for name, path in request.earlier.items() if _holds_model(path)}
    name = config.of if config.of is not None else next(reversed(made), None)
    if name is None or name not in made:
        what = "the run has no export" if config.of is None else f"the run has no export named {config.of!r}"
        raise ExportError(what, f"it has {', '.join(made) or 'none'}; make one first, such as merged")
    return name, made[name]


def _holds_model(folder: Path) -> bool:
    """Whether this is an export that can be pushed: still there, and no note of an earlier push."""
    details = folder / DETAILS
    return details.is_file() and json.loads(details.read_text(encoding="utf-8"))["target"] != "hub"


def _upload(config: HubConfig, folder: Path) -> tuple[str, str]:
    """The commit and where it can be seen."""
    hub = HfApi(endpoint=config.endpoint)
    hub.create_repo(config.repository, private=config.private, exist_ok=True)
    if config.branch is not None:
        hub.create_branch(config.repository, branch=config.branch, exist_ok=True)
    done = hub.upload_folder(
        repo_id=config.repository, folder_path=folder, commit_message=config.message, revision=config.branch
    )
    there = set(hub.list_repo_files(config.repository, revision=config.branch))
    missing = sorted({str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()} - there)
    if missing:
        raise OSError(f"{missing[0]} is not there afterwards")
    return done.oid, done.commit_url
