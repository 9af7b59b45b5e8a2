"""A frozen sentence encoder from a local folder: tokenizer, BERT-like network, mean pooling."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import torch
from torch import Tensor, nn

from alignzeg.files import file_hash
from alignzeg.modeling.pretrained import UNREADABLE, model_folder, reason

KEY = "ALIGNZEG.VLM.TEXT_WEIGHTS"
NEEDED = ("model.safetensors", "config.json", "tokenizer.json")
_POOLING = "1_Pooling/config.json"
_LENGTH = "sentence_bert_config.json"
INSTALL = "pip install alignzeg[imagenet]"


class SentenceEncoder:
    """Embeddings of sentences by a model in the folder layout of sentence-transformers.

    Tokenizer and network are read when they are first needed; the network stays on the CPU, so
    that embeddings do not depend on the device that trains.

    The spec is that folder, or "package:NAME" of an installed package.

    Raises:
        ValueError: if the folder is not there, lacks a file, or pools in another way.
    """

    def __init__(self, spec: str) -> None:
        self.folder = model_folder(spec, KEY, NEEDED)
        config = self._json(NEEDED[1])
        pooling = self._json(_POOLING)
        if not pooling.get("pooling_mode_mean_tokens", True):
            raise ValueError(
                f"{KEY} is {spec!r}, which does not embed a sentence by the mean of its tokens; "
                "use a model such as all-MiniLM-L6-v2"
            )
        try:
            self.embed_dim = int(config["hidden_size"])
            longest = int(config["max_position_embeddings"])
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f"{KEY} is {spec!r}, whose config.json names no {error}: it is no BERT-like model"
            ) from error
        self.context_length = int(self._json(_LENGTH).get("max_seq_length") or longest)
        self._tokenizer: Any = None
        self._network: nn.Module | None = None

    def _json(self, name: str) -> dict[str, Any]:
        path = self.folder / name
        if not path.is_file():
            return {}
        try:
            found = json.loads(path.read_text("utf-8"))
        except UNREADABLE as error:
            raise ValueError(f"{str(path)!r} cannot be read: {error}") from error
        return found if isinstance(found, dict) else {}

    def hash(self) -> str:
        """sha256 of weights, config and tokenizer."""
        parts = [file_hash(self.folder / name) for name in NEEDED]
        return hashlib.sha256("".join(parts).encode()).hexdigest()

    def tokenizer(self) -> Any:
        """The tokenizer, which pads to the longest sentence and cuts nothing off."""
        if self._tokenizer is None:
            try:
                from tokenizers import Tokenizer
            except ImportError as error:
                raise ValueError(f"{KEY} needs the package tokenizers: {INSTALL}") from error
            path = self.folder / NEEDED[2]
            try:
                self._tokenizer = Tokenizer.from_str(path.read_text("utf-8"))
            except Exception as error:  # noqa: BLE001 (tokenizers raise nothing more exact)
                raise ValueError(
                    f"tokenizer {str(path)!r} cannot be read: {reason(error)}"
                ) from error
            self._tokenizer.enable_padding()
        self._tokenizer.no_truncation()
        return self._tokenizer

    def network(self) -> nn.Module:
        """The network, in evaluation mode."""
        if self._network is None:
            try:
                from transformers import AutoModel
                from transformers.utils import logging as messages
            except ImportError as error:
                raise ValueError(f"{KEY} needs the package transformers: {INSTALL}") from error
            messages.disable_progress_bar()
            try:
                network = AutoModel.from_pretrained(
                    self.folder,
                    local_files_only=True,
                    trust_remote_code=False,
                    use_safetensors=True,
                )
            except UNREADABLE as error:
                raise ValueError(
                    f"{KEY} names {str(self.folder)!r}, which cannot be read ({reason(error)})"
                ) from error
            self._network = network.float().eval().requires_grad_(False)
        return self._network

    def token_count(self, sentence: str) -> int:
        """Tokens of a sentence, however many that are."""
        return len(self.tokenizer().encode(sentence).ids)

    def unread(self, sentence: str) -> bool:
        """Whether a part of a sentence is no token of the encoder's, or it has no token at all."""
        encoded = self.tokenizer().encode(sentence)
        words = [
            token
            for token, special in zip(encoded.tokens, encoded.special_tokens_mask, strict=True)
            if not special
        ]
        unknown = getattr(self.tokenizer().model, "unk_token", None)
        return not words or (unknown is not None and unknown in words)

    @torch.no_grad()
    def encode(self, sentences: list[str]) -> Tensor:
        """(N, D) float32, not normalised: the mean over the tokens of each sentence."""
        tokenizer = self.tokenizer()
        tokenizer.enable_truncation(self.context_length)
        encoded = tokenizer.encode_batch(sentences)
        ids = torch.tensor([item.ids for item in encoded])
        mask = torch.tensor([item.attention_mask for item in encoded])
        with torch.autocast("cpu", enabled=False):
            states = self.network()(input_ids=ids, attention_mask=mask).last_hidden_state
        weights = mask[..., None].float()
        return (states * weights).sum(dim=1) / weights.sum(dim=1)
