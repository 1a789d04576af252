"""The local page on which a plugin is tried: a text and a clip in, the answer with its reasons out.

``asking`` finds what is shown, ``curves`` what is drawn over time, ``drawing`` turns both into
HTML; ``page`` lays out the form with Gradio, and ``server`` serves it.
"""
