"""Everything here is read from settings.ini, the one place that names the requirements."""
import configparser, shlex, shutil
from pathlib import Path
from setuptools import setup, find_packages
from setuptools.command.build_py import build_py

HERE = Path(__file__).resolve().parent
ini = configparser.ConfigParser(delimiters=['='])
ini.read(HERE / 'settings.ini', encoding='utf-8')
cfg = ini['DEFAULT']


class WithData(build_py):
    "A wheel also carries what the project ships in data/, as data/ of the package; a checkout uses its own."
    def run(self):
        super().run()
        if self.editable_mode: return
        target = Path(self.build_lib) / cfg['lib_name'] / 'data'
        target.mkdir(parents=True, exist_ok=True)
        shutil.copy(HERE / 'data' / 'README.md', target)
        for folder in shlex.split(cfg['shipped']): shutil.copytree(HERE / 'data' / folder, target / folder, dirs_exist_ok=True)


setup(
    name=cfg['lib_name'], version=cfg['version'], description=cfg['description'],
    long_description=(HERE / 'README.md').read_text(encoding='utf-8'), long_description_content_type='text/markdown',
    author=cfg['author'], author_email=cfg['author_email'], license='Apache-2.0', license_files=['LICENSE', 'data/README.md'],
    packages=find_packages(include=['emotion_study', 'emotion_study.*']), cmdclass={'build_py': WithData},
    package_data={cfg['lib_name']: ['pages/*']},
    python_requires='>=' + cfg['min_python'],
    install_requires=shlex.split(cfg['requirements']),
    extras_require={name: shlex.split(cfg[f'{name}_requirements']) for name in shlex.split(cfg['extras'])},
    entry_points={'console_scripts': shlex.split(cfg['console_scripts'])},
)
