"""Pretrained experts; `poe.load("digits.even")` and so on. Each file of weights has a card (JSON)
and a script in examples/."""
