"""What in a list of class names will cost accuracy: duplicates, near-synonyms, clashes, length."""

from __future__ import annotations

import logging
import re
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from detectron2.config import CfgNode
from torch import Tensor, nn

from alignzeg.data.labels import get_vocabulary
from alignzeg.structures import SYNONYM_SEPARATOR, Vocabulary

logger = logging.getLogger(__name__)

# Pairs of names that are listed before the rest is only counted.
_SHOWN = 20
# Names, as `_key` writes them, of what is none of the classes.
_EVERYTHING_ELSE = {
    *("background", "bg", "backgrd", "other", "others", "otherwise", "rest", "misc"),
    *("miscellaneous", "unlabeled", "unlabelled", "unlabel", "notlabeled", "notlabelled"),
    *("nolabel", "unannotated", "void", "ignore", "ignored", "ignorelabel", "unknown"),
    *("undefined", "unspecified", "none", "nothing", "null", "noclass", "noobject", "dontcare"),
    *("outofroi", "everythingelse", "empty", "nodata", "clutter"),
}
# Cosine above which two prototypes are the same but for rounding.
_SAME = 0.9999


def validate_names(cfg: CfgNode, model: nn.Module) -> None:
    """Logs a warning for everything that is wrong with the names of the data sets.

    Near-synonyms are looked for in the training sets only. The VLM of the model reads the names, if
    it has one; a VLM may also be given itself.
    """
    vlm = getattr(model, "vlm", model)
    vlm = vlm if hasattr(vlm, "embed_text") else None
    cosine = cfg.ALIGNZEG.DATA.SYNONYM_COSINE
    for name in dict.fromkeys((*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST)):
        close = cosine if name in cfg.DATASETS.TRAIN else 1.0
        vocabulary = get_vocabulary(name)
        found = lint(*class_texts(vocabulary), vlm, close)
        if len(vocabulary.seen_ids) == 1 < len(vocabulary) and name in cfg.DATASETS.TRAIN:
            only = vocabulary.names[vocabulary.seen_ids[0]]
            found.append(f"one class is seen, {only!r}: training has nothing to tell it from")
        for warning in (*_few(vocabulary), *found):
            logger.warning("classes of %s: %s", name, warning)


def pitfalls(vocabulary: Vocabulary, vlm: Any = None) -> list[str]:
    """What makes every answer with these classes worth less than it looks.

    Returns:
        One line each: one class alone, names that are cut off, words that the VLM has never read or
        cannot read, classes that are one and the same to it.
    """
    if vlm is None:
        return _few(vocabulary)
    prompts = class_texts(vocabulary)[0]
    return [*_few(vocabulary), *_unlike_meant(prompts, vlm)]


def _few(vocabulary: Vocabulary) -> list[str]:
    if len(vocabulary) == 1:
        return [
            f"one class, {vocabulary.names[0]!r}: every pixel is named so and every labelled pixel "
            "is right, whatever the model has learnt; add what else there is"
        ]
    return []


def lint(
    prompts: Sequence[str], unseen: Sequence[str], vlm: Any = None, cosine: float = 1.0
) -> list[str]:
    """Everything that is suspicious about class names.

    Args:
        prompts: one class each; synonyms are separated by "; ". The first one is its name.
        unseen: names of the classes without training masks.
        vlm: by the contract of VLM_REGISTRY, for what only the text encoder can say; None leaves
            that out.
        cosine: classes whose prototypes are closer are near-synonyms; 1 turns that off.

    Returns:
        One line each, in the order duplicates, clashes, cut off names, words that the VLM has
        never read or cannot read, classes that are the same to it, near-synonyms.
    """
    names = [_synonyms(prompt)[0] for prompt in prompts]
    warnings = [*_duplicates(names), *_shared_words(prompts), *_clashes(names, unseen)]
    warnings += _catch_all(names)
    if vlm is None:
        return warnings
    warnings += _unlike_meant(prompts, vlm)
    if cosine < 1:
        distinct = list(dict.fromkeys(prompts))
        text = vlm.embed_text(distinct)
        short = [_synonyms(prompt)[0] for prompt in distinct]
        warnings += _near(short, set(unseen), text, cosine)
    return warnings


def class_texts(vocabulary: Vocabulary) -> tuple[list[str], list[str]]:
    """Prompts that all begin with the class's name, and the unseen names, as `lint` takes them."""
    prompts = [
        prompt if _synonyms(prompt)[0] == name else SYNONYM_SEPARATOR.join((name, prompt))
        for name, prompt in zip(vocabulary.names, vocabulary.prompts, strict=True)
    ]
    return prompts, [vocabulary.names[i] for i in vocabulary.unseen_ids]


def _synonyms(prompt: str) -> list[str]:
    return [part.strip() for part in prompt.split(SYNONYM_SEPARATOR) if part.strip()] or [prompt]


def _key(name: str) -> str:
    """The name without what a reader would not notice: case, blanks, punctuation."""
    return re.sub(r"[\W_]+", "", name.casefold())


def _duplicates(names: Sequence[str]) -> list[str]:
    groups: dict[str, list[int]] = defaultdict(list)
    for place, name in enumerate(names):
        groups[_key(name)].append(place)
    warnings = []
    for places in groups.values():
        if len(places) == 1:
            continue
        given = list(dict.fromkeys(names[place] for place in places))
        where = " and ".join(str(place) for place in places)
        if len(given) == 1:
            warnings.append(f"duplicate: {given[0]!r} is the name of classes {where}")
        else:
            shown = " and ".join(map(repr, given))
            warnings.append(f"duplicate: {shown} (classes {where}) differ in writing only")
    return warnings


def _shared_words(prompts: Sequence[str]) -> list[str]:
    """Synonyms that mean two classes; names themselves are compared by `_duplicates`."""
    owners: dict[str, list[str]] = defaultdict(list)
    for prompt in dict.fromkeys(prompts):
        name, *more = _synonyms(prompt)
        for word in dict.fromkeys((name, *more)):
            owners[_key(word)].append(name)
    return [
        f"duplicate: {word!r} is a word for the classes {' and '.join(map(repr, mine))}"
        for word, mine in owners.items()
        if len({_key(name) for name in mine}) > 1
    ]


def _clashes(names: Sequence[str], unseen: Sequence[str]) -> list[str]:
    warnings = []
    hidden = {_key(name) for name in unseen}
    for name in dict.fromkeys(unseen):
        if name not in names:
            warnings.append(f"clash: unseen {name!r} is none of the classes")
    for name in dict.fromkeys(names):
        if _key(name) in hidden and name not in unseen:
            warnings.append(f"clash: {name!r} is seen, but unseen under another spelling")
    return warnings


def _catch_all(names: Sequence[str]) -> list[str]:
    found = [name for name in dict.fromkeys(names) if _key(name) in _EVERYTHING_ELSE]
    if not found:
        return []
    return [
        f"catch-all: {_listed(found)} would be learned from all that nobody labelled, unseen "
        "things among it, which then go there; write 255 (no class) for these pixels, leave the "
        "name out, and ask predict for 'none of these' with --reject"
    ]


def _cut_off(prompts: Sequence[str], vlm: Any) -> list[str]:
    """Names that the text encoder reads only the beginning of."""
    if not hasattr(vlm, "token_counts"):
        return []
    words = list(dict.fromkeys(word for prompt in prompts for word in _synonyms(prompt)))
    limit = vlm.context_length
    return [
        f"too long: {word[:60]!r} takes {count} tokens in the longest template, the text encoder "
        f"reads {limit}; the end is lost"
        for word, count in zip(words, vlm.token_counts(words), strict=True)
        if count > limit
    ]


def _unlike_meant(prompts: Sequence[str], vlm: Any) -> list[str]:
    """Names that the text encoder does not read as they are meant."""
    found = [*_cut_off(prompts, vlm), *_never_read(prompts, vlm), *_unreadable(prompts, vlm)]
    return [*found, *_same(prompts, vlm)]


def _unreadable(prompts: Sequence[str], vlm: Any) -> list[str]:
    """One line about the names that the tokenizer leaves out a part of, or none."""
    if not hasattr(vlm, "unread"):
        return []
    lost = vlm.unread(list(dict.fromkeys(word for p in prompts for word in _synonyms(p))))
    if not lost:
        return []
    return [
        f"unreadable: the text encoder has no tokens for (a part of) {_listed(lost)}; write them "
        "in a language that it knows, such as English"
    ]


def _same(prompts: Sequence[str], vlm: Any) -> list[str]:
    """Classes of different names that the VLM cannot tell apart, a line for each group."""
    distinct = list({_key(_synonyms(prompt)[0]): prompt for prompt in prompts}.values())
    text = vlm.embed_text(distinct).float()
    alike = text @ text.T > _SAME
    # Each group once: where its first class is the first of all that are like it.
    groups = [row.nonzero().flatten().tolist() for i, row in enumerate(alike) if not row[:i].any()]
    return [
        f"same: {_listed([_synonyms(distinct[i])[0] for i in group])} are one and the same to the "
        "text encoder, so that the first of them is named wherever one is; call them something else"
        for group in groups
        if len(group) > 1
    ]


def _listed(names: Sequence[str]) -> str:
    return ", ".join(map(repr, names[:_SHOWN])) + (", ..." if len(names) > _SHOWN else "")


def _never_read(prompts: Sequence[str], vlm: Any) -> list[str]:
    """One line about the words that the text encoder was not trained with, or none.

    Only encoders that were trained with a few words say which, as `known_words`.
    """
    known = getattr(vlm, "known_words", None)
    if known is None:
        return []
    unread = [word for word in prompt_words(prompts) if word not in known]
    if not unread:
        return []
    return [
        f"never read: {vlm.id} was trained on drawn scenes and does not know {_listed(unread)}; "
        "what it answers for them means little. For photographs train with another "
        "ALIGNZEG.VLM.MODEL, such as ViT-B-16 with WEIGHTS laion2b_s34b_b88k"
    ]


def prompt_words(prompts: Sequence[str]) -> list[str]:
    """The words in class names, small letters, each once."""
    found = (word for prompt in prompts for word in re.findall(r"\w+", prompt.lower()))
    return list(dict.fromkeys(found))


def _near(names: Sequence[str], unseen: set[str], text: Tensor, cosine: float) -> list[str]:
    """Pairs of classes above a cosine, the closest first; a seen one with an unseen one says so."""
    similar = (text @ text.T).triu(1)
    pairs = [(float(similar[i, j]), i, j) for i, j in (similar >= cosine).nonzero().tolist()]
    lines = []
    for value, i, j in sorted(pairs, reverse=True)[:_SHOWN]:
        first, second = names[i], names[j]
        if (first in unseen) == (second in unseen):
            lines.append(f"near-synonyms: {first!r} and {second!r} (cosine {value:.3f})")
            continue
        seen, hidden = (second, first) if first in unseen else (first, second)
        lines.append(
            f"clash: unseen {hidden!r} is a near-synonym of seen {seen!r} (cosine {value:.3f})"
        )
    if len(pairs) > _SHOWN:
        lines.append(f"near-synonyms: {len(pairs) - _SHOWN} more pairs")
    return lines
