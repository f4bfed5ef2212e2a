"What a study notebook defines, for tests: its imports, functions, classes and constants; nothing of it is run."
import ast
import json
from types import ModuleType

from emotion_study.core import ROOT


def _is_definition(node) -> bool:
    if isinstance(node, (ast.Import, ast.ImportFrom, ast.FunctionDef, ast.ClassDef)): return True
    if not isinstance(node, ast.Assign): return False
    names = [n for t in node.targets for n in (t.elts if isinstance(t, ast.Tuple) else [t])]
    return all(isinstance(n, ast.Name) and n.id.isupper() and len(n.id) > 1 for n in names)


def definitions(name: str  # of the notebook, such as '90_the_twin'
                ) -> ModuleType:
    "A module with what a study notebook defines."
    path = ROOT / 'nbs' / 'study' / f'{name}.ipynb'
    cells = json.loads(path.read_text(encoding='utf-8'))['cells']
    code = [''.join(c['source']) for c in cells if c['cell_type'] == 'code']
    nodes = [n for text in code for n in ast.parse(text).body if _is_definition(n)]
    module = ModuleType(f'study_{name}')
    tree = ast.Module(nodes, [])
    exec(compile(tree, str(path), 'exec'), module.__dict__)
    return module
