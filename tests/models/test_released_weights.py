"""Checkpoints in the layout of the authors' releases, written here by plain Hugging Face models."""

import pytest
import torch
from plain_hllm import BERT, LLAMA, TEXT_LENGTHS, VOCABULARY, PlainHLLM, build, histories
from transformers import AutoConfig, AutoModelForCausalLM, BertConfig, BertModel

from models.released_weights import read_released_weights

LOGIT_SCALE = 3.3
UNGROUPED = LLAMA | {"num_key_value_heads": 4}  # as many key-value heads as heads, as in Baichuan


def causal_model(config=LLAMA):
    return AutoModelForCausalLM.from_config(AutoConfig.for_model(**config, vocab_size=VOCABULARY))


def bert_model():
    settings = {key: value for key, value in BERT.items() if key != "model_type"}
    return BertModel(BertConfig(**settings, vocab_size=VOCABULARY))


def released(item=LLAMA, user=LLAMA):
    """The state of a released model: two causal models with heads and word vectors, [ITEM] and the temperature."""
    torch.manual_seed(11)
    models = {"item_llm": bert_model() if item is BERT else causal_model(item), "user_llm": causal_model(user)}
    state = {f"{role}.{name}": x.clone() for role, model in models.items() for name, x in model.state_dict().items()}
    return state | {"item_emb_tokens": torch.randn(1, 1, 32), "logit_scale": torch.tensor(LOGIT_SCALE)}


def assert_reproduced(path, state, item=LLAMA, user=LLAMA):
    """The imported model embeds as plain models do that are filled with the released weights by name."""
    model = build(item, user, seed=99).eval()
    weights = read_released_weights(path, model)
    assert float(weights.logit_scale) == pytest.approx(LOGIT_SCALE)
    plain = PlainHLLM(model).eval()
    model.load_state_dict(weights.model)
    for role, target in (("item_llm.", plain.item), ("user_llm.", plain.user)):
        own = {name.removeprefix(role).removeprefix("model."): x for name, x in state.items() if name.startswith(role)}
        assert set(target.state_dict()) <= set(own)
        if target is plain.user:
            del own["embed_tokens.weight"]
        target.load_state_dict(own, strict=False)
    plain.item_token = torch.nn.Parameter(state["item_emb_tokens"][0, 0].float())
    items = torch.stack([plain.item_embedding(i) for i in range(len(TEXT_LENGTHS))])
    torch.testing.assert_close(model.embed_items(torch.arange(len(items))), items, atol=1e-5, rtol=1e-5)
    sequences = histories()
    inputs = items[sequences.items]
    expected = torch.cat(plain.predictions(list(inputs.split(sequences.lengths.tolist()))))
    torch.testing.assert_close(model.embed_histories(sequences, inputs), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("item", [LLAMA, BERT], ids=lambda config: config["model_type"])
def test_reproduces_the_embeddings(tmp_path, item):
    state = released(item)
    torch.save(state, tmp_path / "pytorch_model.bin")
    assert_reproduced(tmp_path / "pytorch_model.bin", state, item)


@pytest.mark.parametrize("prefix", ["module.", "_forward_module.", "_forward_module.module."])
@pytest.mark.parametrize("wrapper", [None, "module", "state_dict"])
def test_reads_the_names_of_distributed_training(tmp_path, prefix, wrapper):
    state = released()
    content = {f"{prefix}{name}": x for name, x in state.items()}
    torch.save({wrapper: content, "epoch": 3} if wrapper else content, tmp_path / "model.bin")
    assert_reproduced(tmp_path / "model.bin", state)


def test_user_word_vectors_heads_and_frequencies_may_be_there_or_not(tmp_path):
    state = released()
    lean = {n: x for n, x in state.items() if "lm_head" not in n and not n.startswith("user_llm.model.embed_tokens")}
    lean["item_llm.model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(4)
    torch.save(lean, tmp_path / "model.bin")
    assert_reproduced(tmp_path / "model.bin", state)


def test_reads_baichuans_fused_attention(tmp_path):
    state = released(UNGROUPED, UNGROUPED)
    fused = dict(state)
    for role in ("item_llm", "user_llm"):
        for layer in range(2):
            stem = f"{role}.model.layers.{layer}.self_attn"
            fused[f"{stem}.W_pack.weight"] = torch.cat([fused.pop(f"{stem}.{x}_proj.weight") for x in "qkv"])
    torch.save(fused, tmp_path / "model.bin")
    assert_reproduced(tmp_path / "model.bin", state, UNGROUPED, UNGROUPED)


def test_names_every_key_that_does_not_fit(tmp_path):
    state = released()
    del state["item_emb_tokens"], state["logit_scale"], state["user_llm.model.norm.weight"]
    state["item_llm.model.norm.bias"] = torch.zeros(32)
    state["user_llm.model.layers.1.mlp.up_proj.weight"] = torch.zeros(3, 3)
    torch.save(state, tmp_path / "model.bin")
    with pytest.raises(ValueError, match="does not fit this model") as caught:
        read_released_weights(tmp_path / "model.bin", build())
    text = str(caught.value)
    for part in (
        "missing: item_llm.item_token",
        "missing: logit_scale",
        "missing: user_llm.backbone.norm.weight",
        "unexpected: item_llm.backbone.norm.bias",
        "user_llm.backbone.layers.1.mlp.up_proj.weight is (3, 3) and not (48, 32)",
    ):
        assert part in text
    assert text.count(";") == 5


def test_damaged_files_are_told_in_one_sentence(tmp_path):
    path = tmp_path / "model.bin"
    with pytest.raises(ValueError, match="does not exist"):
        read_released_weights(path, build())
    torch.save(released(), path)
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(ValueError, match="no complete PyTorch file"):
        read_released_weights(path, build())
    torch.save({"a": OSError("not a tensor")}, path)
    with pytest.raises(ValueError, match="no complete PyTorch file of plain tensors"):
        read_released_weights(path, build())
    torch.save([torch.zeros(2)], path)
    with pytest.raises(ValueError, match="flat mapping of names to tensors"):
        read_released_weights(path, build())
