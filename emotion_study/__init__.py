__version__ = "0.1.0"
from . import core  # settles the environment before a library that reads it is loaded


def __getattr__(name):
    "`emotion_study.predict(...)` and `emotion_study.Predictor`, loaded when they are asked for."
    if name not in ('predict', 'Predictor'): raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
    from importlib import import_module
    module = import_module('.predict', __name__)
    return module if name == 'predict' else module.Predictor
