"""GPT-2 models of other programs: the same function imports, anything else says the way out."""

import json
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest
from safetensors.numpy import save_file

from minigpt_jax import load_run
from minigpt_jax.errors import InputError
from minigpt_jax.interop import import_hf
from minigpt_jax.interop.gpt2 import from_gpt2, from_gpt2_config, to_gpt2_config
from minigpt_jax.interop.hugging_face import read_folder
from minigpt_jax.interop.vocabulary import special_tokens, vocabulary
from minigpt_jax.tokenizer import CHAT_VOCAB, TEXT_VOCAB
from tests.in_process import run_main
from tests.interop.models import BASE, CHAT, tensors

WTE = "transformer.wte.weight"
GPT2_VOCABULARY = vocabulary() | {"<|endoftext|>": 50256}
OUR_MARKERS = {name: id for name, id in special_tokens(CHAT_VOCAB).items() if id >= TEXT_VOCAB}
# What transformers is told to do about rows that are no tokens of ours.
CUT = r"model\.resize_token_embeddings\(50257\)"


def foreign(folder: Path, above: np.ndarray, files: dict | None = None) -> Path:
    """A folder of BASE with these rows above GPT-2's vocabulary, and these files beside it."""
    folder.mkdir(exist_ok=True)
    config = replace(BASE, vocab_size=TEXT_VOCAB + len(above))
    weights = tensors(BASE)
    weights[WTE] = np.concatenate([weights[WTE], above.astype(np.float32)])
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    for name, content in ({"config.json": to_gpt2_config(config)} | (files or {})).items():
        (folder / name).write_text(json.dumps(content))
    return folder


def live(rows: int) -> np.ndarray:
    """Rows as training leaves them."""
    return np.random.default_rng(1).normal(size=(rows, BASE.embed)) * 0.2


def tokenizer_json(added: dict[str, int]) -> dict:
    """The parts of tokenizer.json that name ids."""
    tokens = [{"id": id, "content": name, "special": True} for name, id in added.items()]
    return {"model": {"type": "BPE", "vocab": GPT2_VOCABULARY}, "added_tokens": tokens}


def assert_is_base(folder: Path) -> None:
    config, params = read_folder(folder)
    assert config == BASE
    expected = from_gpt2(tensors(BASE), BASE)
    jax.tree.map(np.testing.assert_array_equal, params, expected)


# ---- the embedding's rows


PADDING = {
    # nanoGPT's 50,304 and others.
    "50304 zeros": np.zeros((47, 32)),
    "50432 zeros": np.zeros((175, 32)),
    "one row of zeros": np.zeros((1, 32)),
    "all the same": np.full((47, 32), 0.03),
    # transformers fills new rows like this.
    "the mean and very little noise": tensors(BASE)[WTE].mean(0) + live(47) * 1e-4,
    "one row with the mean": tensors(BASE)[WTE].mean(0)[None],
}


@pytest.mark.parametrize("name", PADDING)
def test_a_vocabulary_padded_with_dead_rows_imports_without_them(tmp_path, name: str):
    assert_is_base(foreign(tmp_path, PADDING[name]))


@pytest.mark.parametrize(
    "files",
    [
        {"vocab.json": GPT2_VOCABULARY},
        {"tokenizer.json": tokenizer_json({"<|endoftext|>": 50256})},
        # An id for padding, which no text has.
        {
            "vocab.json": GPT2_VOCABULARY,
            "added_tokens.json": {"[PAD]": 50257},
            "tokenizer_config.json": {"pad_token": "[PAD]"},
        },
        {
            "tokenizer.json": tokenizer_json({"<pad>": 50257}),
            "tokenizer_config.json": {
                "added_tokens_decoder": {"50257": {"content": "<pad>"}},
                "pad_token": {"content": "<pad>"},
            },
        },
    ],
)
def test_rows_that_the_tokenizer_does_not_reach_are_padding(tmp_path, files: dict):
    """They were trained to be unlikely, as nanoGPT's are, so they are not alike."""
    assert_is_base(foreign(tmp_path, live(47), files))


@pytest.mark.parametrize("rows", [1, 4, 47])
def test_live_rows_that_no_file_explains_are_refused(tmp_path, rows: int):
    """Four of them are as many as our role markers, and are none."""
    with pytest.raises(InputError, match=rf"{TEXT_VOCAB + rows:,} rows.*{CUT}"):
        read_folder(foreign(tmp_path, live(rows)))


OTHER_MARKERS = {"<|im_start|>": 50257, "<|im_end|>": 50258, "<tool>": 50259, "</tool>": 50260}


@pytest.mark.parametrize(
    "files",
    [
        {"tokenizer.json": tokenizer_json(OTHER_MARKERS)},
        {"vocab.json": GPT2_VOCABULARY, "added_tokens.json": OTHER_MARKERS},
        {
            "tokenizer_config.json": {
                "added_tokens_decoder": {str(i): {"content": t} for t, i in OTHER_MARKERS.items()}
            }
        },
        # Our names with other ids.
        {
            "tokenizer.json": tokenizer_json(
                dict(zip(OUR_MARKERS, range(50260, 50256, -1), strict=True))
            )
        },
    ],
)
@pytest.mark.parametrize("rows", [live(4), np.zeros((47, 32))])
def test_tokens_of_another_chat_model_are_not_our_role_markers(tmp_path, files: dict, rows):
    with pytest.raises(InputError, match=rf"4 tokens that GPT-2 has not \(<.*{CUT}"):
        read_folder(foreign(tmp_path, rows, files))


@pytest.mark.parametrize("padding", [0, 43])
def test_our_role_markers_are_known_by_their_names(tmp_path, padding: int):
    rows = np.concatenate([live(4), np.zeros((padding, 32))])
    files = {"tokenizer.json": tokenizer_json(special_tokens(CHAT_VOCAB))}
    config, params = read_folder(foreign(tmp_path, rows, files))
    assert config == CHAT
    np.testing.assert_array_equal(params["wte"][TEXT_VOCAB:CHAT_VOCAB], live(4).astype(np.float32))
    assert not params["wte"][CHAT_VOCAB:].any()


@pytest.mark.parametrize(
    "files",
    [
        {"vocab.json": GPT2_VOCABULARY | {"the": 262, "Ġthe": 1169}},
        {"vocab.json": {"<s>": 0, "<pad>": 1}},
        {"tokenizer.json": {"model": {"type": "Unigram", "vocab": [["<unk>", 0.0]]}}},
        {"vocab.json": GPT2_VOCABULARY | {"<|endoftext|>": 0, "!": 50256}},
    ],
)
def test_a_model_with_another_tokenizer_is_refused(tmp_path, files: dict):
    with pytest.raises(InputError, match=r"its tokenizer is not GPT-2's \(id .*choose a model"):
        read_folder(foreign(tmp_path, live(0), files))


@pytest.mark.parametrize("text", ["[]", "{", '{"model": 3}'])
def test_a_damaged_tokenizer_file_is_named(tmp_path, text: str):
    folder = foreign(tmp_path, live(0))
    (folder / "tokenizer.json").write_text(text)
    with pytest.raises(InputError, match=r"tokenizer\.json: not a tokenizer's file"):
        read_folder(folder)


def test_the_command_imports_a_padded_model_and_refuses_a_live_one(tmp_path):
    padded = foreign(tmp_path / "padded", np.zeros((47, 32)))
    done = run_main(import_hf.main, "--source", padded, "--out", tmp_path / "run")
    assert done.returncode == 0 and "50,257 token ids" in done.stdout, done.stderr
    run = load_run(tmp_path / "run")
    assert run.config == BASE and not run.can_chat

    chat = foreign(tmp_path / "chat", live(4))
    done = run_main(import_hf.main, "--source", chat, "--out", tmp_path / "other")
    assert done.returncode == 2 and done.stdout == "" and done.stderr.count("\n") == 1
    assert not (tmp_path / "other").exists()


# ---- config.json


@pytest.mark.parametrize(
    "change",
    [
        {"activation_function": "gelu_pytorch_tanh"},
        {"activation_function": "gelu_fast"},
        # The same numbers, in another order of operations.
        {"reorder_and_upcast_attn": True},
        {"n_inner": 128},
        {"attn_pdrop": 0.3, "summary_type": "cls_index", "use_cache": False},
    ],
)
def test_another_name_for_the_same_function_is_accepted(change: dict):
    assert from_gpt2_config(to_gpt2_config(BASE) | change) == BASE


@pytest.mark.parametrize("context", [1, 512, 2048, 8192])
def test_any_context_is_accepted(context: int):
    fields = to_gpt2_config(BASE) | {"n_positions": context}
    assert from_gpt2_config(fields) == replace(BASE, context=context)


@pytest.mark.parametrize(
    ("change", "way_out"),
    [
        ({"activation_function": "gelu"}, "choose a model that is a GPT-2"),
        ({"activation_function": "quick_gelu"}, "choose a model that is a GPT-2"),
        ({"activation_function": "relu"}, "choose a model that is a GPT-2"),
        ({"activation_function": ["gelu_new"]}, "choose a model that is a GPT-2"),
        ({"model_type": "gpt_neo"}, "choose a model that is a GPT-2"),
        ({"layer_norm_epsilon": 1e-6}, "choose a model that is a GPT-2"),
        ({"n_inner": 100}, "choose a model that is a GPT-2"),
        ({"add_cross_attention": True}, "choose a model that is a GPT-2"),
        ({"scale_attn_by_inverse_layer_idx": True}, "divide the part of each c_attn"),
        ({"scale_attn_weights": False}, "multiply the part of each c_attn"),
        ({"tie_word_embeddings": False}, "if lm_head.weight and wte.weight are the same"),
        ({"vocab_size": 50256}, "choose a model with GPT-2's tokenizer"),
    ],
)
def test_what_is_refused_says_the_way_out(change: dict, way_out: str):
    with pytest.raises(InputError) as error:
        from_gpt2_config(to_gpt2_config(BASE) | change)
    (name,) = change
    assert name in str(error.value) and way_out in str(error.value)
    assert "\n" not in str(error.value)


def test_queries_scaled_as_the_message_says_give_the_same_model():
    """scale_attn_by_inverse_layer_idx: the scores of layer i are divided by i + 1."""
    torch = pytest.importorskip("torch", exc_type=ImportError)
    transformers = pytest.importorskip("transformers")
    fields = {"n_positions": 16, "n_embd": 32, "n_layer": 3, "n_head": 2, "vocab_size": 100}
    torch.manual_seed(0)
    theirs = transformers.GPT2LMHeadModel(
        transformers.GPT2Config(**fields, scale_attn_by_inverse_layer_idx=True)
    ).eval()
    changed = transformers.GPT2LMHeadModel(transformers.GPT2Config(**fields)).eval()
    changed.load_state_dict(theirs.state_dict())
    with torch.no_grad():
        for i, layer in enumerate(changed.transformer.h):
            layer.attn.c_attn.weight[:, :32] /= i + 1
            layer.attn.c_attn.bias[:32] /= i + 1
        ids = torch.arange(16)[None]
        np.testing.assert_allclose(changed(ids).logits, theirs(ids).logits, atol=1e-5)


# ---- the files


@pytest.mark.parametrize(
    ("file", "message"),
    [
        ("pytorch_model.bin", "pytorch_model.bin is a pickle, which can run code"),
        ("pytorch_model-00001-of-00002.bin", "is a pickle, which can run code"),
        ("tf_model.h5", "tf_model.h5 is of another format"),
        ("flax_model.msgpack", "flax_model.msgpack is of another format"),
        ("adapter_model.safetensors", "holds an adapter: merge it"),
    ],
)
def test_weights_of_another_format_say_how_to_convert_them(tmp_path, file: str, message: str):
    (tmp_path / "config.json").write_text(json.dumps(to_gpt2_config(BASE)))
    (tmp_path / file).write_bytes(b"")
    with pytest.raises(InputError, match=rf"{message}.*save_pretrained\(folder\)"):
        read_folder(tmp_path)


def test_float64_weights_say_how_to_convert_them(tmp_path):
    folder = foreign(tmp_path, live(0))
    weights = tensors(BASE)
    weights["transformer.ln_f.bias"] = weights["transformer.ln_f.bias"].astype(np.float64)
    save_file(weights, folder / "model.safetensors")
    with pytest.raises(InputError, match=r"ln_f\.bias is F64.*model\.float\(\)\.save_pretrained"):
        read_folder(folder)
