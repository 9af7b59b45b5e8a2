"""The page itself, in Gradio."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from html import escape
from importlib import resources
from pathlib import Path
from typing import Any

import gradio as gr

from alignzeg.colors import class_colors
from alignzeg.web import pictures
from alignzeg.web.samples import Example
from alignzeg.web.session import Answer, Scene, Session

logger = logging.getLogger(__name__)

# Proposals at most, and the score that each has at least: 0.01 as it is written.
_PROPOSALS, _LEAST_SHOWN = 12, 0.005
_EMPTY = '<p class="hint">Choose an image and type what may be in it.</p>'
# The largest gamma of the slider, in logits, where the checkpoint's own is not larger.
_GAMMA = 15.0
_WORDS = {
    "gamma": "logits that seen classes are lowered by",
    "theta": "how sure the indicator must be that a proposal is of no seen class",
}


def build(session: Session, examples: Sequence[Example] = (), classes: str = "") -> gr.Blocks:
    """The page for a model, with examples and class names to begin with."""
    page = _Page(session)
    # Nothing is loaded from elsewhere, and nothing is sent there.
    with gr.Blocks(title="alignzeg", analytics_enabled=False) as blocks:
        gr.HTML(
            "<h1>alignzeg</h1><p>Names every pixel of an image among any class names.</p>"
            f"<details><summary>The model was trained on masks of {len(session.seen)} classes."
            f"</summary>{escape(', '.join(session.seen))}</details>",
            elem_id="about",
        )
        scene = gr.State(None)
        with gr.Row():
            with gr.Column(scale=2, min_width=320):
                image = gr.Image(
                    # As a file: Gradio would read it otherwise than all other commands do.
                    type="filepath",
                    image_mode=None,
                    sources=["upload", "clipboard"],
                    label="Image",
                    elem_id="image",
                    height=280,
                )
                text = gr.Textbox(
                    value=classes,
                    label="Class names, between commas",
                    placeholder="cat, grass, sky",
                    elem_id="classes",
                    lines=2,
                    max_lines=4,
                )
                marked = gr.CheckboxGroup(
                    label="Seen in training: the correction lowers their scores",
                    elem_id="seen",
                    choices=[],
                )
                button = gr.Button("Segment", variant="primary", elem_id="segment")
                gamma = gr.Slider(
                    0,
                    max(_GAMMA, session.gamma),
                    value=session.gamma,
                    step=0.1,
                    label="gamma",
                    info=_WORDS["gamma"],
                    elem_id="gamma",
                )
                theta = gr.Slider(
                    0,
                    1,
                    value=0.5 if session.threshold is None else session.threshold,
                    step=0.01,
                    label="theta",
                    info=_WORDS["theta"],
                    elem_id="theta",
                    visible=session.threshold is not None,
                )
            with gr.Column(scale=4, min_width=320):
                note = gr.HTML(_EMPTY, elem_id="note")
                with gr.Row():
                    with gr.Column(min_width=280):
                        before = gr.HTML(label="Before correction", elem_id="before")
                    with gr.Column(min_width=280):
                        after = gr.HTML(label="After correction", elem_id="after")
                areas = gr.HTML(elem_id="areas")
                proposals = gr.HTML(elem_id="proposals")
        inputs = [image, text, marked, gamma, theta, scene]
        outputs = [scene, marked, note, before, after, areas, proposals]
        if examples:
            gr.Examples(
                [[str(example.file), example.classes] for example in examples],
                [image, text],
                label="Examples",
                elem_id="examples",
                cache_examples=False,
            )
        same: dict[str, Any] = {"concurrency_id": "model", "concurrency_limit": 1}
        gr.on(
            [image.change, text.submit, button.click],
            page.show,
            inputs,
            outputs,
            api_name="segment",
            **same,
        )
        gr.on(
            [gamma.change, theta.change, marked.input],
            page.show,
            inputs,
            outputs,
            show_progress="hidden",
            trigger_mode="always_last",
            api_name="correct",
            **same,
        )
    return blocks


def look() -> dict[str, Any]:
    """Theme and style sheet, as arguments of `launch`."""
    style = (resources.files("alignzeg") / "assets" / "web.css").read_text(encoding="utf-8")
    sans = ["Segoe UI", "Roboto", "Helvetica Neue", "DejaVu Sans", "sans-serif"]
    mono = ["Menlo", "Consolas", "DejaVu Sans Mono", "monospace"]
    theme = gr.themes.Default(primary_hue="teal", font=sans, font_mono=mono).set(
        # Gradio's own grey is too faint to read: 2 to 1 on white.
        block_info_text_color="*neutral_500",
        input_placeholder_color="*neutral_500",
    )
    return {"theme": theme, "css": style}


class _Page:
    """What the events do."""

    def __init__(self, session: Session) -> None:
        self.session = session

    def show(
        self,
        image: Any,
        text: str,
        marked: list[str],
        gamma: float,
        theta: float,
        scene: Scene | None,
    ) -> tuple[Any, ...]:
        """New contents of all that depends on the image, the names or the correction."""
        if image is None or not text.strip():
            return None, gr.CheckboxGroup(choices=[], value=[]), _EMPTY, *[""] * 4
        try:
            found = self.session.look(image, text, scene)
        except ValueError as error:
            # What is shown stays, and belongs to the last names that could be meant. Where uploads
            # lie is nobody's business.
            said = str(error).replace(str(image), Path(str(image)).name)
            problem = f'<p class="problem">{escape(said)}</p>'
            return scene, gr.skip(), problem, *[gr.skip() for _ in range(4)]
        names = found.vocabulary.names
        # Otherwise the boxes stay as they are: the user may have gone on clicking.
        boxes: Any = gr.skip()
        if scene is None or scene.vocabulary.names != names:
            seen = zip(names, found.vocabulary.seen, strict=True)
            marked = [name for name, known in seen if known]
            boxes = gr.CheckboxGroup(choices=list(names), value=marked)
        plain = self.session.answer(found, marked, 0.0, theta)
        corrected = self.session.answer(found, marked, gamma, theta)
        vocabulary = self.session.vocabulary(text, marked)
        return (
            found,
            boxes,
            _note(found, marked, gamma, plain, corrected),
            _titled("Before correction", pictures.overlay(found.image, plain.labels, vocabulary)),
            _titled(
                "After correction", pictures.overlay(found.image, corrected.labels, vocabulary)
            ),
            pictures.areas(found.image, plain.labels, corrected.labels, vocabulary),
            self._proposals(found, corrected),
        )

    def _proposals(self, scene: Scene, answer: Answer) -> str:
        order = (-answer.scores).argsort()[:_PROPOSALS].tolist()
        colors = class_colors(scene.vocabulary.names)
        shown = []
        # Those that no class claims say nothing; the first stands for them where all are such.
        order = [n for n in order if answer.scores[n] >= _LEAST_SHOWN] or order[:1]
        for number, mask in zip(order, self.session.masks(scene, order), strict=True):
            kind = int(answer.classes[number])
            name = f"{scene.vocabulary.names[kind]} {answer.scores[number]:.2f}"
            more = "" if answer.unseen is None else f"unseen {answer.unseen[number]:.2f}"
            shown.append((pictures.tile(scene.image, mask, colors[kind]), name, more))
        return pictures.tiles(shown)


def _titled(title: str, body: str) -> str:
    return f'<figure class="view"><figcaption>{title}</figcaption>{body}</figure>'


def _note(scene: Scene, marked: Sequence[str], gamma: float, before: Answer, after: Answer) -> str:
    """What the correction did, and what makes the answer worth less than it looks."""
    moved = float((before.labels != after.labels).mean())
    if len(marked) == len(scene.vocabulary):
        said = "All classes are marked as seen: there is nothing to correct."
    elif not gamma:
        said = "gamma is 0: there is no correction. Both pictures are the same."
    else:
        said = f"The correction renames {100 * moved:.1f} % of the pixels."
    warnings = "".join(f"<li>{escape(note)}</li>" for note in scene.notes)
    return f"<p>{said}</p>" + (f'<ul class="warnings">{warnings}</ul>' if warnings else "")
