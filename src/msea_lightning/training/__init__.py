"""From the options of a run to its finished folder.

``build`` makes data, model and trainer of the options; ``fit`` trains, resumes and finishes a run;
``module`` sets learning rates, gradients and metrics; ``evaluation`` tests. ``verdict`` says what a
result is worth beside ``references``; ``progress`` and ``show`` are what the console shows.
"""
