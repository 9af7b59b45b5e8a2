"""A page in the browser: any image, any class names, and what the bias correction changes.

Gradio is needed for `page` only, which is imported when the page is made.
"""

from alignzeg.web.session import Answer, Scene, Session

__all__ = ["Answer", "Scene", "Session"]
