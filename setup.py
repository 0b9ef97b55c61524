"The package, described once in settings.ini: this file only hands it to setuptools."
from configparser import ConfigParser
from pathlib import Path
from setuptools import find_packages, setup

here = Path(__file__).parent
cfg = ConfigParser(delimiters=['='])
cfg.read(here/'settings.ini', encoding='utf-8')
cfg = cfg['DEFAULT']

statuses = ['1 - Planning', '2 - Pre-Alpha', '3 - Alpha', '4 - Beta', '5 - Production/Stable', '6 - Mature', '7 - Inactive']
pythons = [f'3.{i}' for i in range(int(cfg['min_python'].split('.')[1]), 15)]


def lines(key): return [o.strip() for o in cfg.get(key, '').splitlines() if o.strip()]


setup(
    name=cfg['lib_name'],
    version=cfg['version'],
    description=cfg['description'],
    long_description=(here/'README.md').read_text(encoding='utf-8') if (here/'README.md').exists() else cfg['description'],
    long_description_content_type='text/markdown',
    url=cfg['git_url'],
    project_urls={'Documentation': cfg['doc_host'] + cfg['doc_baseurl'], 'Source': cfg['git_url']},
    author=cfg['author'],
    author_email=cfg['author_email'],
    license_expression=cfg['license'],
    keywords=cfg['keywords'],
    classifiers=['Development Status :: ' + statuses[int(cfg['status']) - 1],
                 'Intended Audience :: ' + cfg['audience'],
                 'Natural Language :: ' + cfg['language'],
                 'Topic :: Scientific/Engineering :: Astronomy',
                 *(f'Programming Language :: Python :: {o}' for o in pythons[:3])],
    packages=find_packages(include=[cfg['lib_name'], cfg['lib_name'] + '.*']),
    package_data={cfg['lib_name']: ['assets/**/*']},
    include_package_data=False,  # what the wheel holds is the line above; data/ stays outside
    zip_safe=False,
    python_requires='>=' + cfg['min_python'],
    install_requires=lines('requirements'),
    extras_require={k: lines(f'{k}_requirements') for k in ('xp', 'cannon', 'baselines', 'dev')},
    entry_points={'console_scripts': lines('console_scripts'), 'nbdev': [f"{cfg['lib_name']}={cfg['lib_name']}._modidx:d"]},
)
