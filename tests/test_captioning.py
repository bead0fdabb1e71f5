"""Captioning against a real HTTP server that plays an OpenAI-compatible endpoint, at its best and at its worst."""

from __future__ import annotations

import base64
import io
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from diffbody import cli
from diffbody_ref.data.captioning import endpoint as endpoint_module
from diffbody_ref.data.captioning.endpoint import EndpointConfig, EndpointError, data_url
from diffbody_ref.data.captioning.folder import caption_folder
from diffbody_ref.data.captioning.prompts import FIELDS, QUESTIONS, AnswerError, parse_answer, prompt, schema
from diffbody_ref.data.datasets import PeopleFolder
from diffbody_ref.ops.captions import Caption
from tests.test_datasets import write_market
from tests.waiting import HANG, wait_until

GOOD = {**dict.fromkeys(FIELDS, ""), "look": "a young woman", "upper": "a red coat.", "shoes": "white trainers"}
SENTENCE = "a young woman, a red coat, white trainers"


class Server(ThreadingHTTPServer):
    """Answers by `plan`: a list of behaviours for each picture, told apart by their colour; the last one repeats."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.plan: dict[int, list[str]] = {}
        self.everyone: list[str] = ["good"]
        self.asked: Counter[int] = Counter()
        self.bodies: list[dict[str, Any]] = []
        self.keys: list[str | None] = []
        self.at_once = self.most_at_once = 0
        self.before_answer: Callable[[int], object] = lambda number: None  # given the picture's number
        self.over = threading.Event()  # the test is, and nobody waits for answers any more
        self.lock = threading.Lock()

    def handle_error(self, request: object, client_address: object) -> None:
        """Clients hang up on slow answers: that is what the tests are about."""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1"


class Handler(BaseHTTPRequestHandler):
    server: Server
    protocol_version = "HTTP/1.1"

    def log_message(self, *arguments: object) -> None:
        pass

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        number = picture_number(sent_picture(body))
        server = self.server
        with server.lock:
            server.bodies.append(body)
            server.keys.append(self.headers.get("authorization"))
            plan = server.plan.get(number, server.everyone)
            behaviour = plan[min(server.asked[number], len(plan) - 1)]
            server.asked[number] += 1
            server.at_once += 1
            server.most_at_once = max(server.most_at_once, server.at_once)
        server.before_answer(number)
        with server.lock:
            server.at_once -= 1
        self.answer(behaviour)

    def answer(self, behaviour: str) -> None:
        if behaviour == "drop":
            self.close_connection = True
            return
        if behaviour == "never":
            self.server.over.wait(HANG)
            return
        if behaviour == "trickle":  # never silent for long, and never done
            self.send_response(200)
            self.send_header("content-length", str(2**30))
            self.end_headers()
            while not self.server.over.wait(0.1):
                self.wfile.write(b" ")  # fails when the client has hung up
                self.wfile.flush()
            return
        if behaviour.isdigit():
            return self.send(int(behaviour), {"error": {"message": f"error of kind {behaviour}"}})
        if behaviour == "html":
            return self.send(200, "<html>a proxy's page</html>")
        self.send(200, {"choices": [{"message": {"role": "assistant", "content": ANSWERS[behaviour]}}]})

    def send(self, status: int, content: object) -> None:
        data = content.encode() if isinstance(content, str) else json.dumps(content).encode()
        self.send_response(status)
        if status == 429:
            self.send_header("retry-after", "0.3")
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


ANSWERS: dict[str, Any] = {
    "good": json.dumps(GOOD),
    "fenced": f"```json\n{json.dumps(GOOD)}\n```",
    "chatty": "Sure! The picture shows a woman.",
    "missing": json.dumps({"look": "a man"}),
    "null": None,
}


def sent_picture(body: dict[str, Any]) -> Image.Image:
    url = body["messages"][0]["content"][1]["image_url"]["url"]
    kind, _, data = url.partition(",")
    assert kind == "data:image/jpeg;base64"
    return Image.open(io.BytesIO(base64.b64decode(data)))


def picture_number(picture: Image.Image) -> int:
    """Pictures are grey, of the level 40 + 10·number."""
    return round((float(np.asarray(picture).mean()) - 40) / 10)


def write_grey(folder: Path, count: int, height: int = 60, width: int = 40) -> Path:
    folder.mkdir()
    for i in range(count):
        Image.new("RGB", (width, height), (40 + 10 * i,) * 3).save(folder / f"{i}.png")
    return folder


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield server
    server.over.set()
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(endpoint_module, "FIRST_PAUSE", 0.02)


def config(server: Server, **more: Any) -> EndpointConfig:
    return EndpointConfig(server.url, "seer", **{"timeout": HANG, "deadline": HANG, **more})


def rows(folder: Path) -> dict[str, dict[str, Any]]:
    lines = (folder / "metadata.jsonl").read_text().splitlines()
    return {row["file_name"]: row for row in map(json.loads, lines)}


def test_the_prompt_list_asks_for_every_field_in_order() -> None:
    assert tuple(QUESTIONS) == FIELDS
    places = [prompt().index(f"- {field}: ") for field in FIELDS]
    assert places == sorted(places)
    assert schema()["required"] == list(FIELDS)


def test_an_answer_is_a_caption() -> None:
    for answer in (ANSWERS["good"], ANSWERS["fenced"], f"\n {ANSWERS['good']} "):
        assert parse_answer(answer) == Caption(look="a young woman", upper="a red coat.", shoes="white trainers")


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ("", "not JSON"),
        ("[]", "not a JSON object"),
        (json.dumps({k: v for k, v in GOOD.items() if k not in ("hair", "pose")}), "keys are missing: hair, pose"),
        (json.dumps({**GOOD, "mood": "happy"}), "keys are unknown: mood"),
        (json.dumps({**GOOD, "hair": ["long", "red"]}), "hair is not a string"),
        (json.dumps({**GOOD, "hair": None}), "hair is not a string"),
        (json.dumps({**GOOD, "hair": "x" * 121}), "hair is too long: one phrase of at most 120"),
        (json.dumps({**GOOD, "hair": "long\nred"}), "hair is too long"),
        (json.dumps({**GOOD, "look": " "}), "look is empty"),
        (json.dumps({**GOOD, **dict.fromkeys(("hair", "face", "pose"), "a " * 20)}), "have 68 words together"),
    ],
)
def test_other_answers_are_told_what_is_wrong(answer: str, message: str) -> None:
    with pytest.raises(AnswerError, match=message):
        parse_answer(answer)


def test_captions_are_written_beside_the_pictures(server: Server, tmp_path: Path) -> None:
    folder = write_grey(tmp_path / "data", 5)
    (folder / "3.txt").write_text("from a text file")
    report = caption_folder(folder, config(server), api_key="secret", concurrency=3)
    assert (report.written, report.before, report.failed) == (4, 1, {})
    people = PeopleFolder([folder])
    assert [people.caption(i) for i in range(5)].count(SENTENCE) == 4
    assert rows(folder)["3.png"] == {"file_name": "3.png", "text": "from a text file"}
    row = rows(folder)["0.png"]
    assert len(row.pop("digest")) == 32
    assert row == {"file_name": "0.png", "text": SENTENCE, "caption": GOOD, "model": "seer"}
    assert server.asked == {0: 1, 1: 1, 2: 1, 4: 1}
    assert set(server.keys) == {"Bearer secret"}
    assert sorted(path.name for path in folder.iterdir()) == sorted(
        [*(f"{i}.png" for i in range(5)), "3.txt", "metadata.jsonl"]
    )
    body = server.bodies[0]
    assert body["model"] == "seer"
    assert body["messages"][0]["content"][0]["text"] == prompt()
    assert body["response_format"]["json_schema"]["schema"] == schema()


def test_another_picture_under_the_same_name_is_captioned_anew(server: Server, tmp_path: Path) -> None:
    folder = write_grey(tmp_path / "data", 3)
    caption_folder(folder, config(server))
    (folder / "1.png").write_bytes((folder / "2.png").read_bytes())
    report = caption_folder(folder, config(server))
    assert (report.written, report.before) == (1, 2)
    assert server.asked == {0: 1, 1: 1, 2: 2}  # its grey is that of picture 2 now


def test_pictures_are_scaled_down_to_be_sent() -> None:
    def size(picture: np.ndarray) -> tuple[int, int]:
        return Image.open(io.BytesIO(base64.b64decode(data_url(picture, 100).partition(",")[2]))).size

    assert size(np.zeros((1000, 400, 3), np.uint8)) == (40, 100)
    assert size(np.zeros((60, 30, 3), np.uint8)) == (30, 60)


@pytest.mark.parametrize("plan", [["429", "good"], ["500", "503", "good"], ["drop", "good"]], ids=lambda plan: plan[0])
def test_what_fails_in_passing_is_sent_again(plan: list[str], server: Server, tmp_path: Path) -> None:
    server.plan[0] = plan
    folder = write_grey(tmp_path / "data", 1)
    start = time.monotonic()
    report = caption_folder(folder, config(server))
    assert (report.written, report.failed) == (1, {})
    assert server.asked[0] == len(plan)
    if plan[0] == "429":
        assert time.monotonic() - start >= 0.3  # as long as the server asks for


@pytest.mark.parametrize("first", ["never", "trickle"])
def test_what_is_not_answered_in_time_is_sent_again(first: str, server: Server, tmp_path: Path) -> None:
    """Whatever takes half a second is; on a busy machine that may be a good answer, too."""
    server.plan[0] = [first, "good"]
    report = caption_folder(write_grey(tmp_path / "data", 1), config(server, timeout=0.5, retries=1000))
    assert (report.written, report.failed) == (1, {})
    assert server.asked[0] >= 2


@pytest.mark.parametrize("first", ["chatty", "missing", "null", "html"])
def test_an_invalid_answer_is_asked_again_with_what_was_wrong(first: str, server: Server, tmp_path: Path) -> None:
    server.plan[0] = [first, "good"]
    report = caption_folder(write_grey(tmp_path / "data", 1), config(server))
    assert (report.written, report.failed) == (1, {})
    said, told = server.bodies[1]["messages"][1:]
    assert (said["role"], said["content"]) == ("assistant", ANSWERS.get(first) or "")
    assert told["content"].startswith("That cannot be used: ")


@pytest.mark.parametrize(
    ("plan", "reason", "asked"),
    [
        ("chatty", "no valid answer in 3 attempts: the answer is not JSON", 3),
        ("500", "answers 500: error of kind 500", 3),  # and two repetitions
        ("400", "answers 400: error of kind 400", 1),  # this picture will not get better
        ("drop", "cannot be reached", 3),
    ],
)
def test_a_picture_that_fails_is_reported_and_the_others_go_on(
    plan: str, reason: str, asked: int, server: Server, tmp_path: Path
) -> None:
    server.plan[1] = [plan]
    folder = write_grey(tmp_path / "data", 4)
    (folder / "broken.jpg").write_bytes(b"not a picture")
    report = caption_folder(folder, config(server, retries=2))
    assert report.written == 3
    assert set(report.failed) == {"1.png", "broken.jpg"}
    assert reason in report.failed["1.png"]
    assert server.asked[1] == asked
    assert "text" not in rows(folder)["1.png"]
    server.plan.clear()
    (folder / "broken.jpg").unlink()
    # The next run asks for what is missing only; a picture that is gone from the folder is an error of the folder.
    again = caption_folder(folder, config(server, retries=0))
    assert again.written == 1
    assert set(again.failed) == {"broken.jpg"}
    assert server.asked[0] == 1


def test_a_picture_that_is_never_answered_in_time_fails(server: Server, tmp_path: Path) -> None:
    server.everyone = ["never"]
    report = caption_folder(write_grey(tmp_path / "data", 1), config(server, retries=2, timeout=0.5))
    assert report.failed == {"0.png": "the endpoint does not answer within 0.5 seconds"}
    assert server.asked[0] <= 3  # a busy machine may give a request up before it is sent


def test_a_deadline_holds_for_all_repetitions_together(server: Server, tmp_path: Path) -> None:
    server.everyone = ["503"]
    # The pauses before twelve repetitions are at least 40 seconds.
    report = caption_folder(write_grey(tmp_path / "data", 1), config(server, retries=12, deadline=0.5))
    assert report.failed == {"0.png": "no caption within 0.5 seconds"}


@pytest.mark.parametrize("status", ["401", "403", "404"])
def test_a_refusal_ends_the_run_and_keeps_what_is_done(status: str, server: Server, tmp_path: Path) -> None:
    server.plan = {i: [status] for i in range(3, 10)}
    folder = write_grey(tmp_path / "data", 10)
    with pytest.raises(EndpointError, match=f"answers {status}: error of kind {status}"):
        caption_folder(folder, config(server), concurrency=1)
    assert sum("text" in row for row in rows(folder).values()) == 3
    assert server.asked.total() == 4


def test_an_endpoint_that_does_nothing_right_is_given_up(server: Server, tmp_path: Path) -> None:
    server.everyone = ["400"]
    with pytest.raises(EndpointError, match="the first 8 pictures all failed, the last by: the endpoint answers 400"):
        caption_folder(write_grey(tmp_path / "data", 20), config(server), concurrency=2)
    assert server.asked.total() <= 9


def test_as_many_at_a_time_as_asked_for(server: Server, tmp_path: Path) -> None:
    """The server answers when four wait."""
    four = threading.Barrier(4)
    server.before_answer = lambda number: four.wait(HANG)
    assert caption_folder(write_grey(tmp_path / "data", 20), config(server), concurrency=4).written == 20
    assert server.most_at_once == 4


def test_limit_and_overwrite(server: Server, tmp_path: Path) -> None:
    folder = write_grey(tmp_path / "data", 3)
    (folder / "0.txt").write_text("from a text file")
    assert caption_folder(folder, config(server), limit=1).written == 1
    assert caption_folder(folder, config(server)).written == 1
    assert caption_folder(folder, config(server), overwrite=True).written == 1  # the text file's
    assert caption_folder(folder, config(server), overwrite=True).written == 0
    assert rows(folder)["0.png"]["text"] == SENTENCE


def test_other_formats_cannot_take_captions(server: Server, tmp_path: Path) -> None:
    folder = write_market(tmp_path / "data")
    with pytest.raises(
        ValueError, match=r"another format \(Market-1501\); convert it to picture files with `diffbody clean`"
    ):
        caption_folder(folder, config(server))
    assert not (folder / "metadata.jsonl").exists()


def test_killed_and_gone_on_with(server: Server, tmp_path: Path) -> None:
    """kill -9 of the command: the next one asks for the rest, and again only for what was under way."""
    free, killed = threading.Semaphore(4), threading.Event()  # four are answered, the others not before the kill
    server.before_answer = lambda number: killed.is_set() or free.acquire(blocking=False) or killed.wait(HANG)
    folder = write_grey(tmp_path / "data", 20)
    command = [sys.executable, "-m", "diffbody", "caption", str(folder), "--endpoint", server.url, "--model", "seer"]
    command += ["--concurrency", "2"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    journal = folder / "captions.jsonl"
    wait_until(
        lambda: journal.is_file() and journal.read_bytes().count(b"\n") == 4 and server.at_once == 2,
        while_true=lambda: process.poll() is None,
    )
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert not (folder / "metadata.jsonl").exists()
    assert server.asked.total() == 4 + 2
    killed.set()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    assert {name: row["text"] for name, row in rows(folder).items()} == {f"{i}.png": SENTENCE for i in range(20)}
    assert server.asked.total() == 20 + 2
    assert not journal.exists()


def test_command(
    server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_grey(tmp_path / "data", 3)
    monkeypatch.setenv("MY_KEY", "k1")

    def run(*arguments: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as stop:
            cli.main(["caption", str(folder), *arguments])
        return stop.value.code, *capsys.readouterr()  # type: ignore[return-value]

    code, out, _ = run("--dry-run")
    assert (code, out) == (0, f"{prompt()}\n{folder}: 3 pictures to caption\n")
    assert not server.bodies
    code, _, error = run("--model", "seer")
    assert (code, error) == (2, "diffbody: error: --endpoint is missing; `--dry-run` does without\n")
    server.plan[2] = ["400"]
    code, out, error = run("--endpoint", server.url, "--model", "seer", "--api-key-env", "MY_KEY")
    assert (code, out) == (2, f"{folder}: captioned 2, before 0, failed 1\n")
    assert error == "diffbody: 2.png: the endpoint answers 400: error of kind 400\n"
    assert set(server.keys) == {"Bearer k1"}
    server.plan.clear()
    code, out, error = run("--endpoint", server.url, "--model", "seer")
    assert (code, out, error) == (0, f"{folder}: captioned 1, before 2, failed 0\n", "")
    assert server.keys[-1] is None
