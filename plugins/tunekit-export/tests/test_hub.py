"""A hub: a server on this machine gets every file of an export in one commit; what is wrong is told."""

from __future__ import annotations

import base64
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import huggingface_hub
import pytest
from pydantic import ValidationError

from tunekit.errors import ExportError, PlanError
from tunekit.testing.options import shows
from tunekit_export import Hub


class FakeHub(BaseHTTPRequestHandler):
    """What huggingface_hub asks of a hub to push: a repository, how files go up, a commit, a list of files."""

    def reply(self, value):
        body = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self):
        kept = self.server.kept
        if "/tree/" in self.path:
            self.reply([{"type": "file", "path": name, "size": 1, "oid": "0"} for name in kept])
        else:
            self.reply({"id": "me/it", "sha": "c0ffee", "siblings": [{"rfilename": name} for name in kept]})

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"])).decode()
        self.server.asked.append((self.path, body))
        if "/preupload/" in self.path:
            files = [{"path": file["path"], "uploadMode": "regular", "shouldIgnore": False}
                     for file in json.loads(body)["files"]]  # fmt: skip
            self.reply({"files": files})
        elif "/commit/" in self.path:
            self.take(map(json.loads, body.splitlines()))
            self.reply({"commitUrl": f"{self.server.address}/me/it/commit/c0ffee", "commitOid": "c0ffee"})
        else:
            self.reply({"url": f"{self.server.address}/me/it", "name": "me/it"})

    def take(self, lines):
        for line in lines:
            if line["key"] == "file" and line["value"]["path"] != self.server.loses:
                self.server.kept[line["value"]["path"]] = base64.b64decode(line["value"]["content"])

    def log_message(self, *arguments):
        """Nothing on the screen."""


@pytest.fixture
def hub(monkeypatch):
    """The server, and huggingface_hub allowed to ask it."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), FakeHub)
    server.kept, server.asked, server.loses = {}, [], None
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_PROGRESS_BARS", True)
    server.address = f"http://127.0.0.1:{server.server_port}"
    yield server
    server.shutdown()
    server.server_close()


@shows("repository", "private", "branch", "message", "endpoint", "of")
def test_every_file_of_an_export_goes_up_in_one_commit(hub, run):
    made = run.export("merged", folder=str(run.folder.parent / "merged"), rows=1)
    run.export("adapter", folder=str(run.folder.parent / "adapter"), rows=1)
    pushed = run.export(
        Hub(repository="me/it", of=made.name, private=True, branch="try", message="First", endpoint=hub.address)
    )
    files = {path.relative_to(made.folder).as_posix(): path.read_bytes() for path in made.folder.rglob("*")}
    assert hub.kept == files
    assert pushed.facts["commit"] == "c0ffee"
    assert pushed.verification == made.verification
    asked = dict(hub.asked)
    assert json.loads(asked["/api/repos/create"])["visibility"] == "private"
    (commit,) = (path for path, _ in hub.asked if "/commit/" in path)
    assert "me/it/commit/try" in commit
    assert '"summary": "First"' in asked[commit]


def test_the_newest_export_is_pushed_where_none_is_named(hub, run):
    run.export("adapter", folder=str(run.folder.parent / "newest"), rows=1)
    assert run.export("hub", repository="me/it", endpoint=hub.address).facts["of"].startswith("adapter")


def test_a_file_that_does_not_arrive_is_told(hub, run):
    run.export("adapter", folder=str(run.folder.parent / "lost"), rows=1)
    hub.loses = "adapter_config.json"
    with pytest.raises(ExportError, match=r"cannot be pushed to me/it: adapter_config.json is not there afterwards"):
        run.export("hub", repository="me/it", endpoint=hub.address)


def say_(made, **numbers):
    """Change what an export says of itself."""
    path = made.folder / "export.json"
    told = json.loads(path.read_text())
    told["options"]["tolerance"] = numbers.pop("tolerance")
    told["verification"] |= numbers
    path.write_text(json.dumps(told))


def test_what_is_pushed_is_judged_by_what_it_accepted_itself_before_a_file_goes_up(hub, run):
    made = run.export("merged", folder=str(run.folder.parent / "coarse"), rows=1)
    say_(made, tolerance=0.5, kl=0.3, base_kl=1.0)
    pushed = run.export("hub", repository="me/it", of=made.name, endpoint=hub.address)
    assert (pushed.verification.kl, run.exports[pushed.name]) == (0.3, pushed.folder)
    hub.asked.clear()
    say_(made, tolerance=0.1, kl=0.3, base_kl=1.0)
    with pytest.raises(ExportError, match=rf"{made.name} is 0\.3 times as far .* and 0\.1 times are accepted"):
        run.export("hub", repository="me/it", of=made.name, endpoint=hub.address)
    assert not hub.asked


def test_a_hub_is_refused_at_plan_time_before_there_is_anything_to_push(train, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    push = {"hub": {"repository": "me/it", "of": "gguf"}}
    with pytest.raises(PlanError, match=r"(?s)HF_HUB_OFFLINE forbids.*is 'gguf', which is not made before.*merged"):
        train(tmp_path / "run", export=["merged", push])
    with pytest.raises(PlanError, match="comes first, so there is nothing to push"):
        train(tmp_path / "run", export=[push, "merged"])
    for name, value in {"rows": 3, "row_tokens": 8, "tolerance": 0.5}.items():
        with pytest.raises(ValidationError, match=f"{name} means nothing here"):
            Hub(repository="me/it", **{name: value})
