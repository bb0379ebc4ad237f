"""GPT-3's layers, dense and banded in turn: beside GPT-2, beside the library's eager attention, packed and sampled."""

from __future__ import annotations

import copy
import subprocess
import sys

import pytest
import torch
from tiny_models import alone_logits, packed_logits, sequences_of, tiny_tokenizer, written_by_transformers
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel

from align.errors import ConfigError
from align.models import attention
from align.models.attention import ATTENTION
from align.models.gpt3 import Gpt3Config, Gpt3LMHeadModel, Gpt3Model
from align.models.heads import load_scalar, scalar_from_lm
from align.models.load import check_attention, load_model
from align.models.packed import pack_pairs, response_logprobs
from align.sampling.engine import Sampling
from align.sampling.local import Ends, generate
from align.text.packing import pack

EOS, PAD, WINDOW = 0, 1, 5


def tiny(window=WINDOW, layers=4, **options):
    sizes = {
        **{"vocab_size": 280, "n_embd": 32, "n_layer": layers, "n_head": 4, "n_positions": 400},
        **{"bos_token_id": EOS, "eos_token_id": EOS, "pad_token_id": PAD, "initializer_range": 0.3},
        **{"embd_pdrop": 0.0, "attn_pdrop": 0.0, "resid_pdrop": 0.0},
    }
    return {**sizes, "sliding_window": window, **options}


def built(window=WINDOW, implementation=ATTENTION, **options):
    torch.manual_seed(0)
    config = AutoConfig.for_model("gpt3", **tiny(window, **options))
    return AutoModelForCausalLM.from_config(config, attn_implementation=implementation).eval()


def eager(model):
    other = copy.deepcopy(model)
    other.set_attn_implementation("eager")
    assert model.config._attn_implementation == ATTENTION
    return other


def gpt2(model, implementation=ATTENTION):
    """GPT-2 with the same weights."""
    options = tiny()
    del options["sliding_window"]
    other = GPT2LMHeadModel._from_config(GPT2Config(**options), attn_implementation=implementation).eval()
    other.load_state_dict(model.state_dict())
    return other


def near(a, b):
    torch.testing.assert_close(a, b, rtol=1e-5, atol=2e-5)


def assert_banded(model, sequences, logits):
    """The logits are not those that the same weights give without a band."""
    assert (logits - alone_logits(gpt2(model), sequences)).abs().max() > 1e-3


def test_dense_and_banded_layers_take_turns():
    assert Gpt3Config(n_layer=5).layer_types == ["full_attention", "sliding_attention"] * 2 + ["full_attention"]
    kinds = ["sliding_attention"] * 2 + ["full_attention"]
    assert Gpt3Config(n_layer=3, layer_types=kinds).layer_types == kinds


@pytest.mark.parametrize(
    ("layers", "width", "heads", "millions"),
    [(12, 768, 12, 125.2), (24, 1024, 16, 355.9), (24, 2048, 16, 1315.7), (96, 12_288, 96, 174_604.3)],
)
def test_parameters_of_the_papers_models(layers, width, heads, millions):
    """Table 2.1's sizes with 2048 positions and GPT-2's vocabulary: 12 L d^2 and what is linear in d."""
    config = Gpt3Config(n_layer=layers, n_embd=width, n_head=heads, n_positions=2048)
    with torch.device("meta"):
        count = sum(p.numel() for p in Gpt3LMHeadModel(config).parameters())
    assert count == (50_257 + 2048) * width + layers * (12 * width**2 + 13 * width) + 2 * width
    assert count / 1e6 == pytest.approx(millions, abs=0.05)


@torch.no_grad()
def test_the_librarys_own_attention_has_the_band():
    model = built(implementation="eager")
    seen = model(torch.tensor(sequences_of([20])), output_attentions=True, use_cache=False).attentions
    distance = torch.arange(20)[:, None] - torch.arange(20)[None, :]
    for layer, probs in enumerate(seen):
        expected = (distance >= 0) & (distance < (WINDOW if layer % 2 else 20))
        assert torch.equal(probs[0] > 0, expected.expand(4, -1, -1))


def test_weights_start_as_gpt2s():
    """The very numbers: residual projections are narrower than the rest."""
    model = built()
    config = gpt2(model).config
    torch.manual_seed(0)
    other = GPT2LMHeadModel(config)
    for (name, a), b in zip(model.named_parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b), name
    block = model.transformer.h[1]
    for narrow in (block.attn.c_proj.weight, block.mlp.c_proj.weight):
        assert narrow.std().item() == pytest.approx(0.3 / (2 * 4) ** 0.5, rel=0.1)


@torch.no_grad()
@pytest.mark.parametrize("window", [300, 400, 2048])
def test_a_band_as_long_as_the_text_is_gpt2_exactly(window):
    model = built(window)
    dense = gpt2(model)
    sequences = sequences_of([300, 7, 120])
    assert torch.equal(packed_logits(model, sequences), packed_logits(dense, sequences))
    ids = torch.tensor(sequences_of([300, 300], seed=1))
    assert torch.equal(model(ids, use_cache=False).logits, dense(ids, use_cache=False).logits)


@torch.no_grad()
@pytest.mark.parametrize("window", [1, 2, WINDOW, 130])
@pytest.mark.parametrize("lengths", [[4], [20], [150], [300], [130, 131], [6, 1, 300, 20, 131, 5]])
def test_a_sequence_alone_or_packed_is_as_in_the_librarys_eager_attention(window, lengths):
    model, sequences = built(window), sequences_of(lengths)
    expected = alone_logits(eager(model), sequences)
    near(alone_logits(model, sequences), expected)
    near(packed_logits(model, sequences), expected)
    if window < max(lengths):
        assert_banded(model, sequences, expected)


@pytest.mark.parametrize("lengths", [[5, 9, 1, 7], [270, 30], [140, 140]])
def test_gradients_are_those_of_the_librarys_eager_attention(lengths):
    ours = built()
    theirs, sequences = eager(ours), sequences_of(lengths, seed=8)
    targets = torch.cat([torch.tensor(s).roll(-1) for s in sequences])
    for model, logits in ((ours, packed_logits(ours, sequences)), (theirs, alone_logits(theirs, sequences))):
        model.zero_grad()
        torch.nn.functional.cross_entropy(logits, targets).backward()
    for (name, a), b in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-4, atol=1e-5, msg=name)


@torch.no_grad()
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("lengths", [[6, 11, 2, 8], [30, 140, 3], [9, 9]])
def test_a_padded_batch_has_band_and_padding_together(side, lengths):
    model, sequences = built(), sequences_of(lengths, seed=1)
    width = max(lengths)
    empty = [[PAD] * (width - n) for n in lengths]
    rows = [p + s if side == "left" else s + p for p, s in zip(empty, sequences, strict=True)]
    mask = torch.tensor([[token != PAD for token in row] for row in rows]).long()
    places = (mask.cumsum(1) - 1).clamp(min=0)
    logits = model(torch.tensor(rows), attention_mask=mask, position_ids=places, use_cache=False).logits
    near(logits[mask.bool()], alone_logits(eager(model), sequences))
    assert_banded(model, sequences, logits[mask.bool()])


@torch.no_grad()
def test_what_a_banded_layer_sees_reaches_no_further():
    """With one banded layer alone, a token feels its own band and nothing before it."""
    model = built(layers=1, layer_types=["sliding_attention"])
    (sequence,) = sequences_of([200], seed=3)
    changed = [*sequence[:50], 77, *sequence[51:]]
    differs = (alone_logits(model, [sequence]) != alone_logits(model, [changed])).any(1)
    assert differs.nonzero().flatten().tolist() == list(range(50, 50 + WINDOW))


PROMPTS = [[7], [8, 9, 10, 11], [12, 13], [14, 15, 16, 17, 18, 19, 20, 21, 22], [20, 21, 22]] * 3
SEEDS = [1000 + i for i in range(len(PROMPTS))]


@torch.no_grad()
@pytest.mark.parametrize("window", [1, 4, 30])
@pytest.mark.parametrize("batch_size", [2, 15])
def test_sampled_logprobs_are_those_of_whole_forward_passes(window, batch_size):
    """Slots are filled again, prompts are padded, the cache goes beyond the band."""
    model = built(window)
    sampling = Sampling(max_new_tokens=12, batch_size=batch_size)
    found = dict(generate(model, PROMPTS, SEEDS, sampling, Ends(EOS, PAD)))
    ids, logprobs = [found[i].ids for i in range(15)], [p for i in range(15) for p in found[i].logprobs]
    again = response_logprobs(model, pack_pairs(PROMPTS, ids, "cpu"), ids)
    assert logprobs == pytest.approx(again.tolist(), abs=1e-5)
    other = eager(model)
    for prompt, response in zip(PROMPTS, ids, strict=True):
        text = [*prompt, *response]
        expected = alone_logits(other, [text]).log_softmax(-1)[len(prompt) - 1 : -1]
        assert logprobs[: len(response)] == pytest.approx(
            expected.gather(1, torch.tensor(response)[:, None])[:, 0].tolist(), abs=1e-5
        )
        del logprobs[: len(response)]


@torch.no_grad()
@pytest.mark.parametrize("implementation", [ATTENTION, "eager"])
@pytest.mark.parametrize("cuts", [(9,), (3, 4), (1, 2, 14)])
def test_the_librarys_sliding_cache_goes_on_where_it_ended(implementation, cuts):
    model = built(implementation=implementation)
    (sequence,) = sequences_of([20], seed=4)
    cache, found = None, []
    for begin, end in zip((0, *cuts), (*cuts, 20), strict=True):
        out = model(torch.tensor([sequence[begin:end]]), past_key_values=cache, use_cache=True)
        cache = out.past_key_values
        found.append(out.logits[0])
    near(torch.cat(found), alone_logits(model, [sequence]))
    assert_banded(model, [sequence], torch.cat(found))
    # The next token sees itself and what a banded layer has kept.
    assert [layer.keys.shape[-2] for layer in cache.layers] == [20, WINDOW - 1] * 2


@torch.no_grad()
@pytest.mark.parametrize("implementation", [ATTENTION, "eager"])
def test_the_librarys_generate_with_its_sliding_cache_writes_the_same(implementation):
    model = built(implementation=implementation)
    sampling = Sampling(max_new_tokens=12, temperature=0.0)
    found = dict(generate(built(), PROMPTS[:5], SEEDS[:5], sampling, Ends(EOS, PAD)))
    for i, prompt in enumerate(PROMPTS[:5]):
        assert found[i].ids == written_by_transformers(model, prompt, 12, EOS, PAD)


@torch.no_grad()
def test_a_saved_model_opens_as_each_kind(tmp_path):
    model = built()
    model.save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    again = load_model(tmp_path)
    assert isinstance(again, Gpt3LMHeadModel)
    assert again.config.sliding_window == WINDOW
    sequences = sequences_of([40, 3])
    assert torch.equal(packed_logits(again, sequences), packed_logits(model, sequences))
    trunk = AutoModel.from_pretrained(tmp_path)
    assert isinstance(trunk, Gpt3Model)
    scalar = scalar_from_lm(tmp_path)
    scalar.save(tmp_path / "scalar")
    scalar = load_scalar(tmp_path / "scalar")
    packed = pack(sequences)
    last = torch.stack([trunk(torch.tensor([s])).last_hidden_state[0, -1] for s in sequences])
    near(scalar(packed.input_ids, packed.position_ids, packed.ends), scalar.classifier.score(last)[:, 0])


ALONE = """
import sys
from transformers import AutoConfig
try:
    AutoConfig.from_pretrained(sys.argv[1])
except ValueError as error:
    print(str(error).splitlines()[0])
from pathlib import Path
from align.models.heads import load_scalar
print(type(load_scalar(Path(sys.argv[1])).classifier).__name__)
"""


@pytest.mark.slow  # 6 s: a process that imports torch
def test_transformers_alone_refuses_it_rather_than_compute_dense_attention(tmp_path):
    """And knows it once any of our loaders is imported."""
    built().save_pretrained(tmp_path)
    scalar_from_lm(tmp_path).save(tmp_path)
    done = subprocess.run([sys.executable, "-c", ALONE, tmp_path], capture_output=True, text=True, check=True)
    refusal, opened = done.stdout.splitlines()
    assert "model type `gpt3`" in refusal
    assert opened == "Gpt3ForSequenceClassification"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layer_types": ["full_attention"] * 3}, r"layer_types: expected 4 of full_attention or sliding_attention"),
        ({"layer_types": ["full_attention"] * 3 + ["chunked_attention"]}, r"layer_types: .* got .*chunked_attention"),
        ({"layer_types": "full_attention"}, r"layer_types: expected 4 .* got \['f', 'u'"),
        ({"window": 0}, r"sliding_window: expected a number of tokens from 1 up, got 0"),
        ({"window": None}, r"sliding_window: .* got None"),
        ({"window": "16"}, r"sliding_window: .* got '16'"),
    ],
)
def test_bad_options_are_refused_in_a_line(options, message):
    with pytest.raises(ConfigError, match=rf"^gpt3: {message}") as raised:
        Gpt3Config(**tiny(**options))
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("name", ["token_type_ids", "encoder_hidden_states"])
def test_what_it_does_not_compute_is_refused(name):
    with pytest.raises(ValueError, match=f"it takes no {name}"):
        built()(torch.tensor([[7, 8]]), **{name: torch.zeros(1, 2, dtype=torch.long)})


@pytest.mark.parametrize("window", [2, 3, 256])
def test_a_model_whose_attention_ignores_its_band_is_refused(monkeypatch, window):
    model = built(window)
    check_attention(model)
    assert model.config.sliding_window == window
    whole = attention.packed_layout
    monkeypatch.setattr(attention, "packed_layout", lambda starts, window=None: whole(starts))
    with pytest.raises(ConfigError, match=r"^gpt3: its attention is not one"):
        check_attention(model)
    assert model.config.sliding_window == window
