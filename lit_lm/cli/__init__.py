"""The commands of lit-lm, one module each."""

COMMANDS = {
    "fit": ("fit", "train a model"),
    "validate": ("fit", "evaluate a checkpoint on its validation data"),
    "test": ("fit", "like validate, logged as test/*, plus text metrics of 20 generated samples"),
    "generate": ("generate", "continue a prompt, or start an interactive session"),
    "predict": ("predict", "continue many prompts in batches"),
    "eval": ("evaluate", "evaluate a model on tasks of lm-evaluation-harness, bundled or your own"),
    "serve": ("serve", "talk to models in a browser, or from any client of OpenAI's API"),
    "prepare": ("data", "train the tokenizer and write the token stores that fit reads"),
    "data": ("data", "inspect the data: `info` prints statistics, `show` prints the batch of a given step"),
    "tokenizer": ("tokenizer", "train or inspect a tokenizer, encode and decode text"),
    "export": ("export", "write a model in the format of other programs, such as transformers or llama.cpp"),
    "import": ("export", "make a checkpoint of a model of another program"),
    "init": ("init", "copy the recipes, to change them"),
    "plan": ("plan", "memory, time, energy and money of a run, before it runs"),
    "doctor": ("doctor", "check this machine: devices, compilers, memory, disk and speed"),
    "completion": ("completion", "print a script that completes commands and options in bash or zsh"),
}
"""For each command: the module of lit_lm.cli that runs it, and its description."""
