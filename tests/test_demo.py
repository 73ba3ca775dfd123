"""demo.py: what its page is answered, and the page in a browser."""

import base64
import io
import json
import re
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.client import HTTPConnection, RemoteDisconnected
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from cli.answers import Answers
from cli.build import load_run
from demo import MAX_BYTES, Server
from tests.conftest import PROJECT, run

SHORT = ("trainer.max_epochs=1", "trainer.accelerator=cpu", "logger=none", "threads=1", "callbacks.pictures=null")
TINY = ("data.val_size=0", "data.batch_size=32", *SHORT)


def answers_of(*settings: str) -> Answers:
    run("run", *settings)
    stored, datamodule, model = load_run("run", "last")
    return Answers(stored.name, datamodule, model)


def picture(gray: int = 0) -> str:
    buffer = io.BytesIO()
    image = Image.new("L", (280, 280), 255)
    image.paste(gray, (100, 60, 140, 220))
    image.save(buffer, "png")
    return base64.b64encode(buffer.getvalue()).decode()


def decoded(shown: dict[str, str]) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(shown["png"].partition(",")[2])))


def test_classifier_of_images_answers_with_the_probability_of_each_class(random_images: Any) -> None:
    random_images(60, 20)
    answers = answers_of("model=mlp", "model.net.hidden_sizes=[8]", *TINY)
    assert {key: answers.about[key] for key in ("kind", "count", "draws")} == {
        "kind": "images",
        "count": 1,
        "draws": True,
    }
    answer = answers.answer({"images": [picture()]})
    assert [name for name, _ in answer["bars"]] == list("0123456789")
    assert sum(share for _, share in answer["bars"]) == pytest.approx(1)
    assert answer["notes"] == ["inverted", "280 x 280 cropped and centered"]
    (seen,) = answer["images"]
    assert (seen["caption"], decoded(seen).size) == ("what the net sees", (28, 28))


def test_autoencoder_shows_what_it_makes_of_an_image(random_images: Any) -> None:
    random_images(60, 20)
    answer = answers_of("model=autoencoder", *TINY).answer({"images": [picture()]})
    assert [shown["caption"] for shown in answer["images"]] == ["what the net sees", "reconstruction"]
    assert answer["text"].startswith("squared error ")
    assert answer["bars"] == []


def test_generator_makes_other_samples_each_time(random_images: Any) -> None:
    random_images(60, 20)
    answers = answers_of("model=gan", *TINY)
    assert answers.about["kind"] == "samples"
    first, second = (decoded(answers.answer({})["images"][0]) for _ in range(2))
    assert first.size == second.size and min(first.size) > 8 * 28
    assert first.tobytes() != second.tobytes()


def test_points_are_answered_by_their_numbers() -> None:
    answers = answers_of(
        "model=blobs_mlp", "data=blobs", "trainer.max_epochs=3", "logger=none", "callbacks.pictures=null"
    )
    assert (answers.about["kind"], len(answers.about["columns"])) == ("numbers", 2)
    for point, likely in (([2, 2], 0), ([-2, -2], 1)):
        bars = answers.answer({"numbers": point})["bars"]
        assert bars[likely][1] > 0.5, bars
    with pytest.raises(ValueError, match="2 numbers are needed"):
        answers.answer({"numbers": [1, 2, 3]})


def test_series_are_continued() -> None:
    answers = answers_of("model=lstm", "model.net.hidden_size=4", "data=sines", "data.size=8", "data.length=20", *SHORT)
    assert answers.about["kind"] == "series"
    assert re.search(r"continued by( -?\d\S*){3}$", answers.answer({"numbers": [0.0, 0.1, 0.2]})["text"])
    with pytest.raises(ValueError, match="at least one number is needed"):
        answers.answer({"numbers": []})


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Serve a run of points from a thread."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("points"))
        answers = answers_of("model=blobs_mlp", "data=blobs", *SHORT)
    answers.about["name"] = "</script><script>alert(1)"
    with Server(0, answers) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def asked(server: Server, method: str, path: str, body: str = "", **headers: str) -> tuple[int, str]:
    connection = HTTPConnection("127.0.0.1", server.server_port, timeout=30)
    connection.request(method, path, body, headers)
    response = connection.getresponse()
    return response.status, response.read().decode()


def test_server_answers_its_own_page_only(server: Server) -> None:
    ours, point = f"127.0.0.1:{server.server_port}", json.dumps({"numbers": [2, 2]})
    status, page = asked(server, "GET", "/")
    assert status == 200
    assert page.count("</script>") == 1  # no name ends the script
    assert asked(server, "POST", "/answer", point, Origin=f"http://{ours}")[0] == 200
    assert asked(server, "GET", "/", Host="rebound.example")[0] == 403
    assert asked(server, "POST", "/answer", point, Origin="http://elsewhere.example")[0] == 403
    assert asked(server, "GET", "/../train.py")[0] == 404


@pytest.mark.parametrize(
    "body",
    [
        "",
        "no JSON",
        "[]",
        "{}",
        '{"numbers": 3}',
        '{"numbers": ["a", "b"]}',
        '{"numbers": [1]}',
        f'{{"numbers": [{"9" * 400}, 2]}}',
        '{"numbers": [[1, 2]]}',
    ],
)
def test_nonsense_is_answered_with_one_line(body: str, server: Server) -> None:
    status, answer = asked(server, "POST", "/answer", body)
    assert status == 400
    assert "\n" not in json.loads(answer)["error"]
    assert asked(server, "POST", "/answer", '{"numbers": [2, 2]}')[0] == 200  # it goes on


def test_page_that_goes_away_before_its_answer_prints_nothing(
    server: Server, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def hang_up(*_: object) -> None:
        raise ConnectionResetError(104, "Connection reset by peer")

    monkeypatch.setattr("demo.Handler._send", hang_up)
    with pytest.raises(RemoteDisconnected):
        asked(server, "GET", "/")
    assert capsys.readouterr().err == ""


def test_connection_on_which_nothing_comes_blocks_nobody(server: Server) -> None:
    with socket.create_connection(("127.0.0.1", server.server_port)):
        assert asked(server, "GET", "/")[0] == 200


@pytest.mark.parametrize("length", [str(MAX_BYTES + 1), "9" * 5000, "1.5", "-1", ""])
def test_too_much_is_not_read(length: str, server: Server) -> None:
    connection = HTTPConnection("127.0.0.1", server.server_port, timeout=30)
    connection.putrequest("POST", "/answer")
    connection.putheader("Content-Length", length)
    connection.endheaders()
    assert connection.getresponse().status == 413


@pytest.mark.real
@pytest.mark.slow
@pytest.mark.browser
def test_drawn_digits_are_recognized_in_a_browser(real_root: Path, browser: Any, tmp_path: Path) -> None:
    from selenium.webdriver.common.action_chains import ActionChains
    from selenium.webdriver.common.by import By
    from selenium.webdriver.support.ui import WebDriverWait

    settings = ("trainer.max_epochs=2", f"data.root={real_root}", "logger=none", "callbacks.pictures=null")
    run("run", "model=cnn", "data=mnist", *settings)
    command = [sys.executable, str(PROJECT / "demo.py"), f"run={tmp_path / 'run'}", "port=0", "browser=false"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=tmp_path)
    try:
        browser.get(re.search(r"http://\S+", process.stdout.readline())[0])
        canvas = browser.find_element(By.ID, "canvas0")
        text = browser.find_element(By.ID, "text")
        for digit, start, moves in (
            ("7", (-60, -90), [(120, 0), (-70, 180)]),
            ("1", (0, -90), [(0, 180)]),
            ("0", (0, -90), [(-50, 40), (-10, 50), (20, 60), (40, 30), (40, -30), (20, -60), (-10, -50), (-50, -40)]),
        ):
            pen = ActionChains(browser, duration=50).move_to_element_with_offset(canvas, *start).click_and_hold()
            for move in moves:
                pen.move_by_offset(*move)
            pen.release().perform()
            WebDriverWait(browser, 30).until(lambda _: text.text)
            assert text.text.split()[0] == digit
            assert browser.find_element(By.CSS_SELECTOR, "#images img").is_displayed()
            browser.find_element(By.TAG_NAME, "button").click()  # Clear
            WebDriverWait(browser, 30).until(lambda _: not text.text)
        file = tmp_path / "seven.png"
        file.write_bytes(base64.b64decode(picture()))
        browser.find_element(By.ID, "file0").send_keys(str(file))
        WebDriverWait(browser, 30).until(lambda _: text.text)
        assert browser.get_log("browser") == []
    finally:
        process.terminate()
        process.wait()
