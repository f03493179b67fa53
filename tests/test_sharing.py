"""An adapter's card and its upload, to a stand-in of a hub on this machine."""

import base64
import dataclasses
import json
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import huggingface_hub
import jax
import numpy as np
import pytest
import yaml
from run_files import quiet

import jaxmoral
from jaxmoral import config as configs
from jaxmoral import export as command
from jaxmoral.api import train_agent
from jaxmoral.errors import UserError
from jaxmoral.measuring.evaluation import evaluate_agent
from jaxmoral.measuring.keeping import write_json
from jaxmoral.measuring.opened import open_run
from jaxmoral.measuring.runs import read_run
from jaxmoral.models.upload import check_push, push
from jaxmoral.reporting.card import card


@pytest.fixture(scope="module")
def run(shallow, tmp_path_factory):
    flags = ["--model.source", str(shallow), "--prompt.labels", "[X,Y]", "--env.episodes", "64"]
    flags += ["--updates", "2", "--lora.rank", "2", "--reward.name", "utilitarian"]
    output = tmp_path_factory.mktemp("runs") / "run"
    trained = train_agent(configs.load(None, flags), output, say=quiet)
    write_json(evaluate_agent(trained, ["ipd"], protocols=["exact"]), output / "evaluation.json")
    return output


def export(monkeypatch, *arguments):
    monkeypatch.setattr("sys.argv", ["export", *map(str, arguments)])
    command.main()


def test_a_card_tells_what_the_adapter_is(run, tmp_path, monkeypatch):
    export(monkeypatch, "--run", run, "--output", tmp_path / "out", "--card")
    assert (tmp_path / "out" / "adapter_config.json").is_file()
    _, front, text = (tmp_path / "out" / "README.md").read_text().split("---\n", 2)
    about = yaml.safe_load(front)
    assert about["library_name"] == "peft"
    assert about["base_model"] == open_run(run).config.model.source
    policy = open_run(run).policy()
    assert f"| CC | {' | '.join(f'{share:.1%}' for share in policy.loc['CC'])} |" in text
    evaluated = json.loads((run / "evaluation.json").read_text())
    tuned = evaluated["suites"]["trained"]["ipd"]["policies"]["tuned"]["opponents"]["random"]
    regret = tuned["exact"]["regret"]["deontological"]["points"]
    assert f"| ipd | random | {regret:.2f} |" in text
    recipe = yaml.safe_load(text.partition("```yaml\n")[2].partition("```")[0])
    assert recipe["reward.name"] == "utilitarian"
    assert recipe["lora.rank"] == 2
    assert "env.rounds" not in recipe


def test_a_card_names_all_that_was_met_and_the_bases_commit(run):
    known, commit = read_run(run), "a" * 40
    config = dataclasses.replace(
        known.config,
        mixture=configs.parse(
            {"mixture": {"games": ["ish", "bos"], "opponents": {"random": 1, "always-defect": 3}}}
        ).mixture,
        model=dataclasses.replace(known.config.model, source=f"owner/name@{commit}"),
        lora=dataclasses.replace(known.config.lora, rank=12),
    )
    text = card(known._replace(config=config), open_run(run).policy(), update=2, command="export")
    assert "# utilitarian in ish, bos: a LoRA adapter" in text
    assert "| ipd | random |" in text
    opponents = known.evaluation["suites"]["trained"]["ipd"]["policies"]["tuned"]["opponents"]
    opponents["bully"] = {"paper": {}}
    assert "bully" not in card(known, open_run(run).policy(), update=2, command="export")
    assert "against always-defect (75%) or random (25%) for 2 updates" in text
    assert text.count(f'from_pretrained("owner/name", revision="{commit}")') == 2
    assert f"vllm serve owner/name --revision {commit} " in text
    assert "--max-lora-rank 16`" in text  # vLLM knows no 12
    # Of an earlier checkpoint.
    stale = known._replace(evaluation=known.evaluation | {"update": 1})
    text = card(stale, open_run(run).policy(), update=2, command="export")
    assert "Regrets were not measured." in text
    assert "| ipd | random |" not in text


def test_an_adapter_of_no_numbers_is_not_exported(run, tmp_path, monkeypatch):
    opened = open_run(run)
    players = opened.trained.state.players
    broken = jax.tree.map(lambda leaf: leaf * np.nan, players.trainable)
    state = opened.trained.state._replace(players=players._replace(trainable=broken))
    opened.trained = dataclasses.replace(opened.trained, state=state)
    monkeypatch.setattr("jaxmoral.measuring.opened.open_run", lambda folder: opened)
    with pytest.raises(UserError, match="its training diverged"):
        command.export(run, "peft", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_open_run_shows_one_game_of_its_players(run):
    opened = open_run(run)
    with pytest.raises(UserError, match="all stands for several"):
        opened.policy("all")
    with pytest.raises(UserError, match="has 4 players, that of training 2"):
        opened.prompts("public-goods(4)")
    with pytest.raises(UserError, match="update: only a run's folder"):
        opened.evaluate(["ipd"], update=1)


def test_an_open_run_chooses_among_options(run):
    shares = open_run(run).choose("What do you choose?", ["X", "Y"])
    assert shares == jaxmoral.choose(run, "What do you choose?", ["X", "Y"])
    assert {*shares} == {"base", "tuned"}
    assert sum(shares["tuned"].values()) == pytest.approx(1, abs=1e-5)


class Hub(BaseHTTPRequestHandler):
    """Takes what is uploaded, or answers with the server's status."""

    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.server.asked.append((self.path, self.headers.get("Authorization"), body))
        if self.server.status != 200:
            self.reply({"error": "no"}, self.server.status)
        elif "preupload" in self.path:
            files = json.loads(body)["files"]
            modes = [
                {"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in files
            ]
            self.reply({"files": modes})
        elif self.path.endswith("/commit/main"):
            url = f"{self.server.address}/me/adapter/commit/1"
            self.reply({"success": True, "commitOid": "1" * 40, "commitUrl": url})
        else:
            self.reply({"url": f"{self.server.address}/me/adapter", "errors": [], "warnings": []})

    def do_GET(self):
        self.reply({"id": "me/adapter", "sha": "0" * 40, "siblings": []}, self.server.status)

    def reply(self, content, status=200):
        text = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *_):
        pass


@pytest.fixture
def hub(monkeypatch):
    server = HTTPServer(("127.0.0.1", 0), Hub)
    server.asked, server.status = [], 200
    server.address = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", server.address)
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    monkeypatch.setenv("HF_HUB_DISABLE_XET", "1")
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()


def test_a_push_sends_the_adapter_and_its_card(run, hub, tmp_path, monkeypatch, capsys):
    output = tmp_path / "out"
    export(monkeypatch, "--run", run, "--output", output, "--push", "me/adapter")
    assert f"uploaded to {hub.address}/me/adapter" in capsys.readouterr().out
    assert {token for _, token, _ in hub.asked} <= {"Bearer hf_secret", None}
    (made,) = [json.loads(body) for path, _, body in hub.asked if path == "/api/repos/create"]
    assert made["name"] == "adapter"
    assert made.get("private") is True or made["visibility"] == "private"
    (sent,) = [body for path, _, body in hub.asked if path.endswith("/commit/main")]
    lines = [json.loads(line) for line in sent.splitlines()]
    files = {
        line["value"]["path"]: base64.b64decode(line["value"]["content"])
        for line in lines
        if line["key"] == "file"
    }
    assert {"README.md", "adapter_config.json", "adapter_model.safetensors"} <= {*files}
    for name, content in files.items():
        assert content == (output / name).read_bytes()


@pytest.mark.parametrize(
    ("status", "message"),
    [(401, "the token is not valid"), (403, "the token may not write there"), (500, "500")],
)
def test_a_refusal_is_one_line(hub, status, message, tmp_path):
    hub.status = status
    (tmp_path / "README.md").write_text("A card.")
    with pytest.raises(UserError, match=message):
        push(tmp_path, "me/adapter")


def test_no_token_and_no_hub_are_said(hub, monkeypatch, tmp_path):
    with pytest.raises(UserError, match="needs OWNER/NAME, got 'adapter'"):
        check_push("adapter")
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(UserError, match="the hub cannot be reached"):
        push(tmp_path, "me/adapter")
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr(huggingface_hub.constants, "HF_TOKEN_PATH", str(tmp_path / "none"))
    with pytest.raises(UserError, match="there is no token"):
        check_push("me/adapter")
