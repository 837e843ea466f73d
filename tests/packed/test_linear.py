"""The modules: same numbers as dense ones, dtypes that stay, weights that are shared and not copied."""

import copy

import pytest
import torch
from torch import nn

from featherweight.errors import FeatherweightError
from featherweight.packed.linear import PackedEmbedding, PackedLinear, TiedPackedLinear, dense_cache
from featherweight.packed.lower import explain, lower


def test_linear_computes_and_stores_what_the_packed_weight_holds(quantized):
    weight, decoded = quantized()
    bias = torch.randn(6)
    module = PackedLinear(weight, bias)
    x = torch.randn(2, 5, 40)
    torch.testing.assert_close(module(x), nn.functional.linear(x, decoded, bias))
    assert set(module.state_dict()) == {"codes", "scales", "zeros", "bias"}
    assert [name for name, _ in module.named_parameters()] == ["bias"] and not module.bias.requires_grad
    assert torch.equal(module.packed.dequantize(), decoded)
    assert module.packed.tensors()["codes"].data_ptr() == weight.codes.data_ptr()


def test_packed_dtypes_survive_every_conversion(quantized):
    weight, decoded = quantized()
    for convert in (lambda m: m.to(torch.bfloat16), lambda m: m.half(), lambda m: m.double()):
        module = convert(nn.Sequential(PackedLinear(weight, torch.randn(6))))[0]
        assert module.scales.dtype == torch.float16 and module.codes.dtype == torch.uint8
        assert module.bias.dtype == module.weight.dtype != torch.float32
        assert torch.equal(module.packed.dequantize(), decoded)
    assert PackedLinear(weight, dtype=torch.bfloat16).to("meta").scales.device.type == "meta"


def test_weight_stand_in_answers_model_code(quantized):
    weight, _ = quantized()
    stand_in = PackedLinear(weight, dtype=torch.bfloat16).weight
    assert stand_in.dtype == torch.bfloat16 and stand_in.shape == (6, 40) and stand_in.device.type == "cpu"
    assert stand_in.size(0) == 6 and stand_in.ndim == 2 and stand_in.numel() == 240


def test_state_round_trip_through_meta(quantized):
    weight, decoded = quantized()
    source = PackedLinear(weight, torch.randn(6))
    target = copy.deepcopy(source).to("meta")
    target.load_state_dict(source.state_dict(), assign=True)
    assert torch.equal(target.packed.dequantize(), decoded)


def test_embedding_and_tied_head(quantized):
    weight, decoded = quantized()
    model = nn.ModuleDict({"embedding": PackedEmbedding(weight)})
    model["head"] = TiedPackedLinear(model["embedding"])
    ids = torch.tensor([[0, 5], [3, 3]])
    assert torch.equal(model["embedding"](ids), decoded[ids])
    x = torch.randn(3, 40)
    assert torch.equal(model["head"](x), nn.functional.linear(x, decoded))
    assert set(model.state_dict()) == {"embedding.codes", "embedding.scales", "embedding.zeros"}
    again = copy.deepcopy(model)
    assert again["head"]._embedding[0] is again["embedding"]
    assert model.to(torch.bfloat16)["head"].weight.dtype == torch.bfloat16
    assert model["embedding"](ids).dtype == torch.bfloat16


def test_embedding_takes_over_from_the_original(quantized):
    class Scaled(nn.Embedding):
        def __init__(self):
            super().__init__(6, 40, padding_idx=2)
            self.register_buffer("embed_scale", torch.tensor(6.3), persistent=False)

    weight, decoded = quantized()
    packed = PackedEmbedding.like(Scaled(), weight)
    assert packed.padding_idx == 2 and packed.num_embeddings == 6 and packed.embedding_dim == 40
    ids = torch.tensor([1, 2])
    assert torch.equal(packed(ids), decoded[ids] * torch.tensor(6.3))
    with pytest.raises(FeatherweightError, match="max_norm"):
        PackedEmbedding.like(nn.Embedding(6, 40, max_norm=1.0), weight)


def test_dense_cache_gives_the_same_numbers_and_goes_away(quantized):
    weight, _ = quantized()
    model = nn.Sequential(PackedLinear(weight, torch.randn(6)))
    x = torch.randn(3, 40)
    plain = model(x)
    with dense_cache(model):
        assert model[0].dense(torch.float32) is not None
        assert torch.equal(model(x), plain)
    assert model[0].dense(torch.float32) is None
    model[0].cache_dense()
    assert "dense" not in " ".join(model.state_dict()) and model.half()[0].dense(torch.float32) is None


def test_lowering_and_its_explanation(quantized):
    weight, decoded = quantized()
    x = torch.randn(3, 40)
    assert torch.equal(lower(weight, "cpu")(x), nn.functional.linear(x, decoded))
    names = explain(weight, "cpu")
    assert names[-1][0] == "reference" and names[-1][1] is True
