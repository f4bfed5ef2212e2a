"""Everything here is read from settings.ini, the one place that names the requirements."""
import configparser, shlex
from setuptools import setup, find_packages

ini = configparser.ConfigParser(delimiters=['='])
ini.read('settings.ini', encoding='utf-8')
cfg = ini['DEFAULT']

setup(
    name=cfg['lib_name'], version=cfg['version'], description=cfg['description'],
    author=cfg['author'], author_email=cfg['author_email'],
    packages=find_packages(include=['emotion_study', 'emotion_study.*']),
    python_requires='>=' + cfg['min_python'],
    install_requires=shlex.split(cfg['requirements']),
    extras_require={'dev': shlex.split(cfg['dev_requirements']), 'asr': shlex.split(cfg['asr_requirements'])},
    entry_points={'console_scripts': shlex.split(cfg['console_scripts'])},
)
