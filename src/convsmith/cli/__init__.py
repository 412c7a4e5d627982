"""The command line: ``main.py`` dispatches, every verb is one small file of ``verbs/``.

How to add a verb
    1. Write ``cli/verbs/<verb>.py`` (``evaluate.py`` is the one to follow); no list names it. At module level import
       only the standard library, ``convsmith.cli.shell``, ``errors``, ``files`` and ``registry``; all else goes inside
       ``run``. In it define three names:

       ``Arguments``: a frozen, keyword-only dataclass, based on `options.Listing` (``--json``, ``--debug``),
       `options.Computation` (those and ``--config --preset --out --seed --device --overwrite``) or `options.Work`
       (those and ``--resume``), and on any of `data_options`, `train_options` and `classifier`.
       Each field is ``name: type = option(default, "help text", group="...", metavar="...")`` and becomes the flag
       ``--name`` and the YAML key ``name``. Without a default the flag is required; ``positional=True`` makes a bare
       word of it. The docstring of the class is the description in ``-h``.

       ``EXAMPLES``: command lines without the leading ``convsmith``; ``-h`` ends with them and a test parses each.

       ``run(arguments) -> dict | None``: does the work, prints for people through `terminal`, reports long work
       through `progress.progress`, and returns the JSON-able summary that ``--json`` prints as the last line.
    2. Check everything that can be wrong before any work, and raise `convsmith.errors.InvalidArgument` (exit code 2).
       Work that fails later raises `RunFailed` (1), a run that was stopped and has saved its state
       `run_folder.Interrupted` (130).
    3. A verb that writes a run folder calls ``run_folder.check("<verb>", arguments)`` first of all, and after its other
       checks ``run_folder.open_run("<verb>", arguments)``.
    4. Presets are ``cli/presets/<verb>-<name>.yaml``; a test loads each.

A chapter of the audit is a file ``cli/reports/audit_<name>.py`` with ``TITLE`` and ``run(subject) -> Chapter``; see
``cli/reports/audit_subject.py``. Settings of a method are read from ``--set`` by `method_settings.method_settings`.
"""
