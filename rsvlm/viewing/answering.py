"""Widgets whose page asks and whose kernel answers: the ground of the gallery, the search box and the dialogue.

A page sends ``{"ask": id, "what": name, "given": {...}}``, perhaps with bytes; the method ``answer_NAME`` is called with
what is given, and its result goes back as ``{"ask": id, "answer": ...}``. An error goes back as its text, to be shown
where the question was asked: JupyterLab hides what a callback raises.
"""

from collections.abc import Callable, Sequence

import anywidget
import traitlets

from rsvlm.viewing.page import read_template

TOLD = (ValueError, OSError, RuntimeError, ImportError)  # errors with a message for the reader


def widget_script(*names: str) -> str:
    """The ES module of a widget, of the package's script files."""
    return read_template("dom.js", "kernel.js", *names)


def widget_style(*names: str) -> str:
    """The style sheet inside a widget's shadow root."""
    return read_template("page.css", *names, "widget.css")


class AnsweringWidget(anywidget.AnyWidget):
    """A widget that answers its page's questions; see the module's text."""

    sheet = traitlets.Unicode().tag(sync=True)  # style sheet of the shadow root
    setting = traitlets.Dict().tag(sync=True)  # what the page knows before it asks

    def __init__(self, **traits: object) -> None:
        super().__init__(**traits)
        self._tell: Callable[[object], None] = lambda _: None
        self.on_msg(self.receive)

    def receive(self, _: object, message: dict, buffers: Sequence[memoryview] = ()) -> None:
        """Answer one message of the page."""
        ask, what = message.get("ask"), message.get("what")
        answer = getattr(self, f"answer_{what}", None)
        if not callable(answer):
            self.send({"ask": ask, "error": f"there is no answer to {what!r}"})
            return
        given = dict(message.get("given") or {})
        if buffers:
            given["buffers"] = [bytes(buffer) for buffer in buffers]
        self._tell = lambda part: self.send({"ask": ask, "part": part})
        try:
            result = answer(**given)
        except Exception as error:
            self.send({"ask": ask, "error": f"{type(error).__name__}: {error}"})
            if not isinstance(error, TOLD):
                raise  # a fault of the program: into the log, too
        else:
            self.send({"ask": ask, "answer": result})

    def tell(self, part: object) -> None:
        """Send a part of the answer that is being made."""
        self._tell(part)
