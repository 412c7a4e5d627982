"""The command line: ``main.py`` dispatches, every verb is one small file beside it.

How to add a verb
    1. Write ``cli/verbs/<verb>.py`` (``cli/verbs/evaluate.py`` is the one to follow). At module level import only
       the standard library, ``convsmith.cli.*``, ``convsmith.errors`` and ``convsmith.registry``; all else goes
       inside ``run``.
    2. In it define three names:

       ``Arguments``: a frozen, keyword-only dataclass, based on `options.Listing` (``--json``, ``--debug``),
       `options.Computation` (those and ``--config --preset --out --seed --device --overwrite``) or `options.Work`
       (those and ``--resume``). `data_options.DataOptions` adds the flags that choose images,
       `data_options.LoaderOptions` also how they are batched, `loop_options.LoopOptions` those of the training loop,
       `classifier.ModelOptions` those that choose a network to train; these can be combined. Each field is
       ``name: type = option(default, "help text", group="...", metavar="...")`` and becomes the flag ``--name`` and
       the YAML key ``name``. Leave the default out and the flag is required; ``positional=True`` makes a bare word
       of it. The docstring of the class is the description in ``-h``.

       ``EXAMPLES``: command lines without the leading ``convsmith``; ``-h`` ends with them and a test parses each.

       ``run(arguments) -> dict | None``: does the work, prints for people through `terminal`, reports long work
       through `progress.progress`, and returns the JSON-able summary that ``--json`` prints as the last line.
    3. Nothing else: the file is the verb. `main.ORDER` only says where ``--help`` lists it.
    4. Check everything that can be wrong before any work, and raise `convsmith.errors.InvalidArgument` (exit code 2);
       `main` turns it into one message. Work that fails later raises `RunFailed` (exit code 1). A run that was
       stopped and has saved its state raises `run_folder.Interrupted` (exit code 130).
    5. A verb that writes a run folder calls ``run_folder.check("<verb>", arguments)`` first of all, and after its other
       checks ``run_folder.open_run("<verb>", arguments)``, which writes ``config.yaml`` and ``environment.json``.
    6. Presets are ``cli/presets/<verb>-<name>.yaml``; a test loads each.

A chapter of the audit is a file ``cli/reports/audit_<name>.py`` with ``TITLE`` and ``run(subject) -> Chapter``; see
``cli/reports/audit_subject.py``. A verb that takes settings of a method reads ``--set`` with
`method_settings.method_settings`.
"""
