"""The admin port's routes for adapters: lists, additions below one folder, removals."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path
from typing import Any

import pytest

from predictors.compute.checkpoint.summary import AdapterSummary
from predictors.errors import InvalidRequest, NotSupported
from predictors.operators.lora_routes import MAX_CHANGES, lora_routes, resolve_below
from predictors.protocol.http.app import RestApp
from predictors.protocol.registry import Registry
from predictors.settings import ServerSettings, Settings
from tests.fakes import PATIENCE_S
from tests.protocol.openai.doubles import Painter, Wire, post


class Takes(Painter):
    """Records what is added and removed; `gate` holds a removal."""

    def __init__(self, name: str = "flux") -> None:
        super().__init__(name)
        self.added: list[tuple[str, Path, Path | None]] = []
        self.gate = threading.Event()
        self.gate.set()
        self.removing, self.removed = threading.Semaphore(0), threading.Semaphore(0)
        self._loras: dict[str, AdapterSummary] = {}
        self.refusal: Exception | None = None

    @property
    def loras(self) -> list[AdapterSummary]:
        return list(self._loras.values())

    @property
    def adapter_names(self) -> list[str]:
        return list(self._loras)

    def add_lora(self, name: str, path: Path, root: Path | None = None) -> AdapterSummary:
        if self.refusal is not None:
            raise self.refusal
        self.added.append((name, path, root))
        made = AdapterSummary(name, path.name, "kohya", "00", 4, {"transformer": 2}, 10)
        self._loras[name] = made
        return made

    def remove_lora(self, name: str) -> AdapterSummary:
        self.removing.release()
        assert self.gate.wait(PATIENCE_S)
        found = self._loras.pop(name)
        self.removed.release()
        return found


def app(*models: Any, root: Path | str = "") -> RestApp:
    settings = Settings(server=ServerSettings(lora_root=str(root)))
    return RestApp(lora_routes(Registry(models, settings)), access_log=False)


ADD = {"name": "a", "path": "style.safetensors"}


async def test_an_adapter_below_the_root_is_added_listed_and_removed(tmp_path: Path) -> None:
    model = Takes()
    admin = app(model, root=tmp_path)
    added = await post("/admin/loras", ADD).run(admin)
    assert added.status == 201
    assert added.json == {
        "model": "flux", "name": "a", "file": "style.safetensors", "format": "kohya",
        "digest": "00", "rank": 4, "linears": {"transformer": 2}, "num_values": 10,
    }  # fmt: skip
    assert model.added == [("a", tmp_path / "style.safetensors", tmp_path)]
    listed = await Wire("GET", "/admin/loras").run(admin)
    assert listed.json == {"loras": [added.json]}
    removed = await Wire("DELETE", "/admin/loras/a").run(admin)
    assert (removed.status, removed.json) == (200, added.json)
    again = await Wire("DELETE", "/admin/loras/a").run(admin)
    assert again.status == 404
    assert "flux has no adapter 'a'; loaded: none" in again.body.decode()


async def test_a_refusal_of_the_adapter_is_the_answer(tmp_path: Path) -> None:
    model = Takes()
    model.refusal = InvalidRequest("a.safetensors holds a LoKr adapter", param="name")
    wire = await post("/admin/loras", ADD).run(app(model, root=tmp_path))
    assert wire.status == 400
    assert "holds a LoKr adapter" in wire.body.decode()


async def test_a_change_whose_thread_does_not_start_takes_no_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = Takes()
    admin = app(model, root=tmp_path)

    def no_thread(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", no_thread)
        for _ in range(MAX_CHANGES + 1):  # with a place each there would be none left: 503
            wire = await post("/admin/loras", ADD).run(admin)
            assert wire.status == 500
            assert "thread" not in wire.body.decode()
    assert model.added == []
    assert (await post("/admin/loras", ADD).run(admin)).status == 201


BODIES: list[tuple[Any, str]] = [
    ([], "the body must be a JSON object"),
    ({"name": "a"}, "path is required"),
    ({"path": "a"}, "name is required"),
    (ADD | {"scale": 1}, "unknown field 'scale'"),
    (ADD | {"path": 1}, "path must be a text"),
    (ADD | {"path": "a\0b"}, "path must be a text"),
    (ADD | {"path": "a" * 1025}, "path must be a text"),
    (ADD | {"name": "a:b"}, "an adapter's name has 1 to 64 letters"),
    (ADD | {"path": "../x"}, "path must lead to something below"),
    (ADD | {"path": "/etc/passwd"}, "path must lead to something below"),
    (ADD | {"path": "."}, "path must lead to something below"),
    (ADD | {"path": ""}, "path must lead to something below"),
    (ADD | {"path": "out/x"}, "path must lead to something below"),
]


@pytest.mark.parametrize(("body", "message"), BODIES, ids=[str(i) for i in range(len(BODIES))])
async def test_a_wrong_body_is_refused_by_its_field(
    body: Any, message: str, tmp_path: Path
) -> None:
    root = tmp_path / "root"
    root.mkdir()
    (root / "out").symlink_to(tmp_path)
    model = Takes()
    wire = await post("/admin/loras", body).run(app(model, root=root))
    assert wire.status == 400
    assert message in wire.body.decode()
    assert str(tmp_path) not in wire.body.decode()
    assert model.added == []


async def test_without_a_root_nothing_is_added_and_a_page_can_not_ask(tmp_path: Path) -> None:
    off = await post("/admin/loras", ADD).run(app(Takes()))
    assert off.status == 501
    assert "PREDICTORS_SERVER_LORA_ROOT" in off.body.decode()
    form = post("/admin/loras", ADD, content_type="text/plain")
    assert (await form.run(app(Takes(), root=tmp_path))).status == 415


async def test_the_model_is_named_where_several_take_adapters(tmp_path: Path) -> None:
    one, two = Takes("one"), Takes("two")
    admin = app(one, two, Painter("plain"), root=tmp_path)
    wire = await post("/admin/loras", ADD).run(admin)
    assert (wire.status, "which model? One of one, two" in wire.body.decode()) == (400, True)
    assert (await post("/admin/loras", ADD | {"model": "two"}).run(admin)).status == 201
    assert [len(one.added), len(two.added)] == [0, 1]
    wire = await post("/admin/loras", ADD | {"model": "plain"}).run(admin)
    assert (wire.status, "takes adapters; there is one, two" in wire.body.decode()) == (404, True)
    none = await post("/admin/loras", ADD).run(app(Painter(), root=tmp_path))
    assert none.status == 501


async def test_the_name_of_a_model_is_not_taken_for_an_adapter(tmp_path: Path) -> None:
    admin = app(Takes("flux"), Painter("flux:a"), root=tmp_path)
    wire = await post("/admin/loras", ADD).run(admin)
    assert (wire.status, "'flux:a' is the name of a model" in wire.body.decode()) == (400, True)


async def test_few_changes_run_at_a_time_and_each_to_its_end(tmp_path: Path) -> None:
    model = Takes()
    admin = app(model, root=tmp_path)
    names = [f"a{i}" for i in range(MAX_CHANGES)]
    for name in names:
        await post("/admin/loras", ADD | {"name": name}).run(admin)
    model.gate.clear()
    waiting = [
        asyncio.ensure_future(Wire("DELETE", f"/admin/loras/{name}").run(admin)) for name in names
    ]
    for _ in names:
        assert await asyncio.to_thread(model.removing.acquire, timeout=PATIENCE_S)
    busy = await post("/admin/loras", ADD).run(admin)
    assert busy.status == 503
    waiting[0].cancel()  # its removal goes on
    model.gate.set()
    ended = await asyncio.gather(*waiting, return_exceptions=True)
    assert [wire.status for wire in ended[1:] if isinstance(wire, Wire)] == [200] * 3
    for _ in names:  # the cancelled one as well
        assert await asyncio.to_thread(model.removed.acquire, timeout=PATIENCE_S)
    assert (await post("/admin/loras", ADD).run(admin)).status == 201


def test_a_path_is_resolved_before_it_is_looked_at(tmp_path: Path) -> None:
    root = tmp_path / "root"
    (root / "inside").mkdir(parents=True)
    (root / "link").symlink_to("inside")
    (tmp_path / "root2").mkdir()
    assert resolve_below(str(root), "link") == (root / "inside", root)
    assert resolve_below(str(root), str(root / "none")) == (root / "none", root)
    for path in ("../root2", "inside/../..", str(tmp_path / "root2"), "none/../../x"):
        with pytest.raises(InvalidRequest):
            resolve_below(str(root), path)
    with pytest.raises(NotSupported):
        resolve_below("", "a")
