"""The page, drawn with Gradio."""

import os
from typing import Any

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # read when gradio is imported: the server tells nobody that it runs

import gradio as gr

from ma2mba.serving.page.assets import asset
from ma2mba.serving.page.events import Events
from ma2mba.serving.settings import Settings

EVENTS = 4000
"""Events of all visitors that may run, and wait, at once: each window that shows a reading or an answer has one."""
LONGEST_QUESTION = 8000
"""Characters."""


def build(settings: Settings, events: Events) -> gr.Blocks:
    """Return the page."""
    with gr.Blocks(analytics_enabled=False, title=f"Ask {settings.model_name}", fill_width=True) as page:
        gr.HTML(html_template=asset("header.html"), js_on_load=None, model=settings.model_name)
        with gr.Row(equal_height=False):
            with gr.Column(scale=5, min_width=320):
                picker = _panel("picker", "", videos=[], most_bytes=settings.max_upload, hours=settings.max_video_hours)
                address, fetch = _address(settings)
                progress = _panel("progress", {})
                viewer = _panel("viewer", {})
            with gr.Column(scale=6, min_width=320):
                talk = _panel("talk", [])
                question = gr.Textbox(
                    label="Question", placeholder="What happens in the video?", max_length=LONGEST_QUESTION, max_lines=6
                )
                with gr.Row():
                    ask = gr.Button("Ask", variant="primary", min_width=120)
                    stop = gr.Button("Stop", variant="stop", visible=False, min_width=120)
                    clear = gr.Button("Clear", min_width=120)
        view = [picker, viewer, progress, talk, ask, stop]
        private: dict[str, Any] = {
            "show_progress": "hidden",
            "api_visibility": "private",
            "concurrency_limit": None,
            "trigger_mode": "multiple",
        }
        choosing = [
            page.load(events.arrive, None, view, **private),
            picker.select(events.show, picker, view, **private),
            picker.delete(events.remove, picker, view, **private),
            gr.on([fetch.click, address.submit], events.fetch, address, view, **private),
        ]
        for chosen in choosing:
            chosen.then(events.progress, picker, progress, **private)
        gr.on([ask.click, question.submit], events.ask, [question, picker], [question, talk, ask, stop], **private)
        stop.click(events.stop, picker, None, **private)
        clear.click(events.clear, picker, talk, **private)
    page.max_threads = EVENTS  # Gradio's default runs 40 events at once; ours are coroutines, and take no threads
    page.queue(max_size=EVENTS, api_open=False, default_concurrency_limit=None)
    return page


def _panel(name: str, value: Any, **props: Any) -> gr.HTML:
    """Return a part of the page that has its own HTML and script in assets/."""
    return gr.HTML(
        value, html_template=asset(f"{name}.html"), js_on_load=asset(f"{name}.js"), elem_id=f"ma2mba-{name}", **props
    )


def _address(settings: Settings) -> tuple[gr.Textbox, gr.Button]:
    """Return the box for an address, which is shown if videos may be fetched from anywhere."""
    with gr.Row(visible=bool(settings.domains), equal_height=True):
        address = gr.Textbox(
            label="Or the address of a video", info=f"From {', '.join(settings.domains)}", scale=4, max_length=2000
        )
        fetch = gr.Button("Fetch", scale=1, min_width=80)
    return address, fetch


def theme() -> gr.themes.Base:
    """Return a theme whose fonts every system has: nothing is loaded from elsewhere."""
    return gr.themes.Base(
        primary_hue="blue",
        neutral_hue="slate",
        font=["system-ui", "-apple-system", "Segoe UI", "Roboto", "sans-serif"],
        font_mono=["ui-monospace", "Menlo", "Consolas", "monospace"],
    ).set(
        body_text_color_subdued="*neutral_600",
        body_text_color_subdued_dark="*neutral_400",
        input_placeholder_color="*neutral_500",
        input_placeholder_color_dark="*neutral_400",
        button_primary_background_fill="*primary_700",
        button_primary_background_fill_hover="*primary_600",
    )
