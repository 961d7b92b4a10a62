"""Bad input gets one clear line, a hint and a documented exit code; nothing is half-written."""

from __future__ import annotations

import json
import signal
import socket
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from processes import DEVICES, Process, json_of

import edgefl_broker
from edgefl.cli import main
from edgefl.manifest import FORMAT
from edgefl_broker import RunningBroker

Start = Callable[..., Process]


def fails(*arguments: str, code: int) -> str:
    """Run a command in this process; its error lines."""
    result = CliRunner().invoke(main, [*arguments], prog_name="edgefl")
    assert result.exit_code == code, result.output
    lines = result.stderr.strip().splitlines()
    assert sum(line.startswith("error: ") for line in lines) == 1, lines
    assert "Traceback" not in result.stderr
    return "\n".join(line for line in lines if line.startswith(("error: ", "hint: ")))


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def model_file(folder: Path, text: str) -> str:
    path = folder / "mine.py"
    path.write_text("import torch\nfrom torch import nn\n" + text)
    return f"{path}:model"


# --- models -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("model = 3\n", "expected a torch.nn.Module"),
        ("def modle(): return nn.Linear(4, 2)\n", "did you mean 'modle'?"),
        ("def model(): return nn.Linear(4, 2)\n", "--input"),
        ("def model(): raise ValueError('no weights here')\n", "no weights here"),
        ("def model(): return nn.Linear(4, 2), torch.zeros(1, 5)\n", "[batch, 5]"),
        (
            "class Roots(nn.Module):\n"
            "    def __init__(self):\n        super().__init__()\n        self.layer = nn.Linear(4, 4)\n"
            "    def forward(self, x):\n        return torch.linalg.svdvals(self.layer(x).reshape(-1, 2, 2))\n"
            "def model(): return Roots(), torch.zeros(1, 4)\n",
            "svd",
        ),
    ],
)
def test_a_model_that_cannot_be_exported(tmp_path: Path, text: str, says: str) -> None:
    out = tmp_path / "out.bundle"
    error = fails("export", model_file(tmp_path, text), "-o", str(out), code=3)
    assert says in error, error
    assert not out.exists() and [p.name for p in tmp_path.iterdir() if ".bundle" in p.name] == []


def test_a_bundle_of_a_newer_format_and_one_with_a_changed_byte(digits_bundle: Path, tmp_path: Path) -> None:
    newer, changed = tmp_path / "newer.bundle", tmp_path / "changed.bundle"
    for path in (newer, changed):
        path.mkdir()
        for file in digits_bundle.rglob("*"):
            if file.is_file():
                target = path / file.relative_to(digits_bundle)
                target.parent.mkdir(exist_ok=True)
                target.write_bytes(file.read_bytes())
    manifest = json.loads((newer / "manifest.json").read_text())
    (newer / "manifest.json").write_text(json.dumps(manifest | {"format": FORMAT + 1}))
    assert (
        f"bundle format {FORMAT + 1}" in (error := fails("inspect", str(newer), code=3)) and "upgrade edgefl" in error
    )
    program = changed / "programs" / "train.onnx"
    data = bytearray(program.read_bytes())
    data[len(data) // 2] ^= 1
    program.write_bytes(data)
    assert "train.onnx was changed" in fails("verify", str(changed), code=3)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--std", "0"], "std is 0.0"),
        (["--mean", "nan"], "mean is nan"),
        (["--mean", "1,2,3"], "mean has 3 numbers; expected 1"),
        (["--learning-rate", "nan"], "--learning-rate is nan; expected a number, above 0"),
    ],
)
def test_settings_that_would_train_nothing_are_refused_at_export(tmp_path: Path, options: list[str], says: str) -> None:
    out = tmp_path / "out.bundle"
    assert says in fails("export", "zoo:digits", "-o", str(out), *options, code=3)
    assert not out.exists()


def test_a_place_where_nothing_can_be_written(parts: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    target = str(tmp_path / "file" / "parts")
    assert "Not a directory" in fails("split", str(parts / "pi-1.npz"), "--devices", "2", "-o", target, code=3)


def test_names_that_could_leave_their_folder(parts: Path, tmp_path: Path) -> None:
    data = str(parts / "pi-1.npz")
    assert "--prefix" in fails("split", data, "--devices", "2", "-o", str(tmp_path), "--prefix", "../x", code=3)
    broker = ["--broker", "mqtt://127.0.0.1:1", "--data", data]
    assert "../evil" in fails("device", *broker, "--name", "pi-1", "--run", "../evil", code=3)
    assert "Pi 1" in fails("device", *broker, "--name", "Pi 1", code=3)


# --- run files and brokers ----------------------------------------------------------------------------------------


def test_a_run_file_with_an_unknown_key_names_the_nearest(tmp_path: Path) -> None:
    path = tmp_path / "run.toml"
    path.write_text('name = "a"\nbundle = "b"\n[method]\nlearning_rat = 0.1\n')
    error = fails("aggregate", str(path), code=3)
    assert "unknown key 'learning_rat' in [method]" in error and "did you mean 'learning_rate'?" in error


def test_no_broker_there(parts: Path, tmp_path: Path) -> None:
    url = f"mqtt://127.0.0.1:{free_port()}"
    state = ["--state", str(tmp_path / "state")]
    data = ["--data", str(parts / "pi-1.npz")]
    error = fails("device", "--once", "--broker", url, "--name", "pi-1", *data, *state, code=4)
    assert f"no broker answers at {url}" in error and "edgefl broker" in error


def test_wrong_credentials(parts: Path, tmp_path: Path) -> None:
    with edgefl_broker.start("mosquitto", users={"pi": "right"}) as broker:
        address = broker.url.replace("//", "//pi:wrong@")
        arguments = ["--name", "pi-1", "--data", str(parts / "pi-1.npz"), "--state", str(tmp_path)]
        error = fails("device", "--broker", address, *arguments, code=4)
    assert "refuses us: Not authorized" in error
    assert "wrong" not in error, "a password in an error ends in a log"


def test_an_address_that_cannot_be_read(parts: Path) -> None:
    arguments = ["--name", "pi-1", "--data", str(parts / "pi-1.npz")]
    assert "cannot be read" in fails("device", "--broker", "http://127.0.0.1:1883", *arguments, code=3)


def run_file(folder: Path, bundle: Path, devices: int) -> str:
    path = folder / "run.toml"
    path.write_text(
        f'name = "test"\nbundle = "{bundle}"\n[method]\nrounds = 2\n[round]\nmin_devices = {devices}\nquorum = 1.0\n'
        '[evaluate]\ndata = "digits"\n'
    )
    return str(path)


def test_a_broker_that_takes_only_small_packets_gets_small_chunks(
    start: Start, digits_bundle: Path, parts: Path, tmp_path: Path
) -> None:
    with edgefl_broker.start("mosquitto", max_packet_bytes=8 * 1024) as broker:
        aggregator = start(
            "aggregate", run_file(tmp_path, digits_bundle, 1), "--broker", broker.url, "--format", "json"
        )
        device = start("device", "--broker", broker.url, "--name", "pi-1", "--data", str(parts / "pi-1.npz"))
        code, out, err = aggregator.end()
        assert code == 0, err
        assert json_of(out)["rounds"] == 2
        assert device.end()[0] == 0


def test_a_broker_whose_packets_are_too_small_is_refused_with_its_limit(
    digits_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with edgefl_broker.start("mosquitto", max_packet_bytes=2000) as broker:
        error = fails("aggregate", run_file(tmp_path, digits_bundle, 1), "--broker", broker.url, code=4)
    assert "packets of at most 2000 bytes" in error and "max_packet_size" in error


def test_a_run_that_never_reached_its_broker_leaves_no_directory(
    start: Start, digits_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    url = f"mqtt://127.0.0.1:{free_port()}"
    path = run_file(tmp_path, digits_bundle, 1)
    fails("aggregate", path, "--broker", url, "--once", code=4)
    assert list((tmp_path / "runs").iterdir()) == []
    waiting = start("aggregate", path, "--broker", url)
    waiting.wait_for(lambda line: f"no broker answers at {url}" in line)
    waiting.child.send_signal(signal.SIGINT)
    assert waiting.end()[0] == 130 and list((tmp_path / "runs").iterdir()) == []


def test_two_aggregators_on_one_run_and_a_resume_of_another_name(
    start: Start,
    broker: RunningBroker,
    digits_bundle: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    parts: Path,
) -> None:
    monkeypatch.chdir(tmp_path)
    path = run_file(tmp_path, digits_bundle, 3)
    first = start("aggregate", path, "--broker", broker.url.replace("//", "//user:s3cret@"))
    start("device", "--broker", broker.url, "--name", "pi-1", "--data", str(parts / "pi-1.npz")).wait_for(
        lambda line: "bundle digits" in line
    )
    error = fails("aggregate", path, "--broker", broker.url, "--resume", code=3)
    assert "another process carries the run" in error
    first.child.send_signal(signal.SIGINT)
    assert first.end()[0] == 130
    (run_dir,) = (tmp_path / "runs").iterdir()
    assert "s3cret" not in (run_dir / "run.toml").read_text(), "run directories are shared"
    other = tmp_path / "other.toml"
    other.write_text(Path(path).read_text().replace('name = "test"', 'name = "tes"'))
    assert "no run of 'tes'" in fails("aggregate", str(other), "--broker", broker.url, "--resume", code=3)


# --- devices ------------------------------------------------------------------------------------------------------


def test_two_devices_with_one_name(
    start: Start, broker: RunningBroker, digits_bundle: Path, parts: Path, tmp_path: Path
) -> None:
    start("aggregate", run_file(tmp_path, digits_bundle, 3), "--broker", broker.url)
    arguments = ["device", "--broker", broker.url, "--name", "pi-1", "--data", str(parts / "pi-1.npz")]
    first = start(*arguments)
    first.wait_for(lambda line: "bundle digits" in line)
    second = start(*arguments, "--state", str(tmp_path / "elsewhere"))
    with ThreadPoolExecutor(2) as pool:
        waits = {pool.submit(process.child.wait, 60): process for process in (first, second)}
        done, _ = wait(waits, return_when=FIRST_COMPLETED)
        (ended,) = (waits[future] for future in done)
        stays = second if ended is first else first
        code, _, err = ended.end()
        assert code == 4
        assert "error: another device named 'pi-1' is connected" in err or "with the same name" in err
        assert "hint: give every device its own --name" in err
        assert stays.child.poll() is None, stays.end()
        stays.kill()


def test_two_devices_in_one_folder(
    start: Start, broker: RunningBroker, digits_bundle: Path, parts: Path, tmp_path: Path
) -> None:
    start("aggregate", run_file(tmp_path, digits_bundle, 3), "--broker", broker.url)
    arguments = ["device", "--broker", broker.url, "--name", "pi-1", "--data", str(parts / "pi-1.npz")]
    start(*arguments).wait_for(lambda line: "bundle digits" in line)
    code, _, err = start(*arguments).end()
    assert code == 3 and "another device process uses" in err


@pytest.mark.parametrize(
    ("x", "y", "says"),
    [
        (np.zeros((4, 1, 9, 9), np.float32), np.zeros(4, np.int64), "[1, 8, 8]"),
        (np.zeros((4, 1, 8, 8), np.float32), np.array([0, 1, 2, 10]), "10"),
        (np.zeros((0, 1, 8, 8), np.float32), np.zeros(0, np.int64), "no examples"),
    ],
)
def test_data_that_does_not_fit_the_bundle_ends_the_device_and_the_aggregator_is_told(
    start: Start,
    broker: RunningBroker,
    digits_bundle: Path,
    tmp_path: Path,
    x: np.ndarray,
    y: np.ndarray,
    says: str,
) -> None:
    np.savez(tmp_path / "mine.npz", x=x, y=y)
    start("aggregate", run_file(tmp_path, digits_bundle, 1), "--broker", broker.url)
    code, _, err = start("device", "--broker", broker.url, "--name", DEVICES[0], "--data", "mine.npz").end()
    assert code == 3, err
    last = [line for line in err.splitlines() if line.startswith("error: ")]
    assert len(last) == 1 and says in last[0], err
