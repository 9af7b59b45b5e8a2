"""A classifier and a sentence encoder of random weights, small enough to build in every test."""

from __future__ import annotations

import json
import string
from pathlib import Path

import timm
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordPiece
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing

MODEL = "test_efficientnet"
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
# Channels of the sentences, and of what the classifier's last layer reads.
CHANNELS, FEATURES = 16, 256
LONGEST = 12


def write_classifier(folder: Path, model: str = MODEL) -> str:
    """A weight file of a timm network; its path."""
    torch.manual_seed(0)
    network = timm.create_model(model)
    for name, tensor in network.state_dict().items():
        if "running_mean" in name or name.endswith("bias"):
            tensor += 0.1 * torch.randn_like(tensor)
        elif "running_var" in name:
            tensor *= 1 + 0.5 * torch.rand_like(tensor)
    path = folder / f"{model}.pth"
    torch.save(network.state_dict(), path)
    return str(path)


def write_sentences(folder: Path) -> str:
    """A folder as sentence-transformers writes one: a BERT of one layer that reads letters."""
    from transformers import BertConfig, BertModel

    folder = folder / "sentences"
    letters = string.ascii_letters + string.digits
    words = [*SPECIAL, *letters, *(f"##{letter}" for letter in letters)]
    vocabulary = {word: number for number, word in enumerate(words)}
    torch.manual_seed(0)
    network = BertModel(
        BertConfig(
            vocab_size=len(words),
            hidden_size=CHANNELS,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=16,
            max_position_embeddings=64,
        )
    )
    network.save_pretrained(folder)
    tokenizer = Tokenizer(WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()
    ends = [(word, vocabulary[word]) for word in ("[CLS]", "[SEP]")]
    tokenizer.post_processor = TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=ends)
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": LONGEST}))
    return str(folder)


def tiny_imagenet(folder: Path) -> list[str]:
    """KEY VALUE pairs of an encoder and a VLM that need no package; written once to a folder."""
    classifier, sentences = folder / f"{MODEL}.pth", folder / "sentences"
    if not classifier.is_file():
        write_classifier(folder)
        write_sentences(folder)
    return [
        *("ALIGNZEG.ENCODER.TIMM_MODEL", MODEL, "ALIGNZEG.ENCODER.TIMM_WEIGHTS", ""),
        *("MODEL.BACKBONE.FREEZE_AT", "0"),
        *("ALIGNZEG.VLM.MODEL", MODEL, "ALIGNZEG.VLM.WEIGHTS", str(classifier)),
        *("ALIGNZEG.VLM.TEXT_WEIGHTS", str(sentences), "ALIGNZEG.VLM.IMAGE_SIZE", "64"),
    ]
