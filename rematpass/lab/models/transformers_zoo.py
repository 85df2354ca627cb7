"""Models of transformers with random weights, built from a configuration; each function returns module and inputs.

Other settings keep the defaults of transformers, which is imported inside the functions, since that takes seconds.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from rematpass.config import default_environment
from rematpass.errors import MeasureError

Inputs = dict[str, torch.Tensor]


def _transformers() -> Any:
    default_environment(HF_HUB_OFFLINE="1")  # a configuration is enough: never use the network
    try:
        import transformers
    except ImportError as error:
        raise MeasureError(
            "this model needs transformers, which is not installed: pip install 'rematpass[bench]'"
        ) from error
    transformers.logging.set_verbosity_error()  # it warns about token ids beyond these small vocabularies
    return transformers


def llama(
    *,
    width: int = 256,
    layers: int = 8,
    heads: int = 8,
    kv_heads: int = 4,
    mlp: int = 688,
    vocabulary: int = 2048,
    batch: int = 4,
    length: int = 256,
    tied: bool = False,
) -> tuple[nn.Module, Inputs]:
    """A causal language model with grouped-query attention (sdpa) and a gated perceptron; no dropout."""
    hf = _transformers()
    config = hf.LlamaConfig(
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        intermediate_size=mlp,
        vocab_size=vocabulary,
        max_position_embeddings=length,
        tie_word_embeddings=tied,
        attn_implementation="sdpa",
        use_cache=False,
    )
    return hf.LlamaForCausalLM(config), _tokens(vocabulary, batch, length)


def gpt2(
    *,
    width: int = 256,
    layers: int = 8,
    heads: int = 8,
    vocabulary: int = 2048,
    batch: int = 4,
    length: int = 256,
    dropout: float = 0.1,
    attention: str = "eager",
) -> tuple[nn.Module, Inputs]:
    """A causal language model with dropout; eager attention has maps of batch x heads x length x length."""
    hf = _transformers()
    config = hf.GPT2Config(
        n_embd=width,
        n_layer=layers,
        n_head=heads,
        vocab_size=vocabulary,
        n_positions=length,
        resid_pdrop=dropout,
        embd_pdrop=dropout,
        attn_pdrop=dropout,
        attn_implementation=attention,
        use_cache=False,
    )
    module = hf.GPT2LMHeadModel(config)
    module.loss_type = "ForCausalLM"  # the default, set here since choosing it logs a warning that breaks the graph
    return module, _tokens(vocabulary, batch, length)


# Without this, the first step would infer it and set it, and the second step would recompile.
_CLASSES = "single_label_classification"


def vit(
    *,
    width: int = 256,
    layers: int = 8,
    heads: int = 8,
    side: int = 224,
    classes: int = 2,
    batch: int = 8,
    attention: str = "eager",
) -> tuple[nn.Module, Inputs]:
    """A vision transformer on patches of 16 x 16 pixels, without dropout."""
    hf = _transformers()
    config = hf.ViTConfig(
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        intermediate_size=4 * width,
        image_size=side,
        num_labels=classes,
        attn_implementation=attention,
        problem_type=_CLASSES,
    )
    return hf.ViTForImageClassification(config), _images(batch, side, classes)


def resnet50(
    *, depths: tuple[int, ...] = (3, 4, 6, 3), side: int = 128, classes: int = 2, batch: int = 8
) -> tuple[nn.Module, Inputs]:
    """ResNet-50: bottlenecks of three convolutions with batch norms; ``depths``: the bottlenecks of each stage."""
    hf = _transformers()
    config = hf.ResNetConfig(depths=list(depths), num_labels=classes, problem_type=_CLASSES)
    return hf.ResNetForImageClassification(config), _images(batch, side, classes)


def t5(
    *,
    width: int = 256,
    layers: int = 4,
    heads: int = 8,
    mlp: int = 688,
    vocabulary: int = 2048,
    batch: int = 4,
    length: int = 256,
    dropout: float = 0.1,
) -> tuple[nn.Module, Inputs]:
    """An encoder and a decoder of ``layers`` blocks each; every decoder block reads the encoder's output."""
    hf = _transformers()
    config = hf.T5Config(
        d_model=width,
        d_kv=width // heads,
        d_ff=mlp,
        num_layers=layers,
        num_decoder_layers=layers,
        num_heads=heads,
        vocab_size=vocabulary,
        dropout_rate=dropout,
        feed_forward_proj="gated-gelu",
        decoder_start_token_id=0,
        pad_token_id=0,
        use_cache=False,
    )
    return hf.T5ForConditionalGeneration(config), _tokens(vocabulary, batch, length)


def _tokens(vocabulary: int, batch: int, length: int) -> Inputs:
    tokens = torch.randint(vocabulary, (batch, length))
    return {"input_ids": tokens, "labels": tokens}


def _images(batch: int, side: int, classes: int) -> Inputs:
    return {"pixel_values": torch.randn(batch, 3, side, side), "labels": torch.randint(classes, (batch,))}
