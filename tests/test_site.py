"""The documentation as a site: it builds without a warning, needs nothing from elsewhere, and has the whole API."""

import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

import imbloss
import imbloss.metrics

ROOT = Path(__file__).parent.parent
ENTRY = re.compile(r"^::: (\S+)$", re.MULTILINE)


class Page(HTMLParser):
    """What a page loads, and where it leads."""

    def __init__(self, text):
        super().__init__()
        self.text, self.loaded, self.links, self.anchors = text, [], [], set()
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.anchors.add(attrs.get("id"))
        if tag in ("script", "img", "link", "iframe", "source") and attrs.get("rel") != "canonical":
            self.loaded += [attrs[name] for name in ("src", "href") if attrs.get(name)]
        if tag == "a" and attrs.get("href"):
            self.links.append(attrs["href"])


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    pytest.importorskip("mkdocs", reason="needs the extra docs")
    out = tmp_path_factory.mktemp("site")
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(out)]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, env=environment)
    assert result.returncode == 0, result.stderr
    return {path: Page(path.read_text()) for path in out.rglob("index.html")}


def test_every_page_is_there(site):
    names = {path.parent.name for path in site}
    assert {path.stem for path in ROOT.glob("docs/*.md")} - {"index"} | {"contributing", "changelog"} <= names


def test_nothing_is_loaded_from_elsewhere(site):
    for path, page in site.items():
        assert [url for url in page.loaded if "//" in url or not url] == [], path
        assert len(page.loaded) > 3  # which this test reads
    root = min(site, key=lambda path: len(path.parts)).parent
    styles = list(root.rglob("*.css"))
    assert styles
    for style in styles:
        assert not re.search(r"url\([\"']?(https?:)?//", style.read_text()), style


def test_links_lead_to_files_and_headings(site):
    checked = 0
    for path, page in site.items():
        for link in page.links:
            place, _, anchor = link.partition("#")
            if ":" in place:
                continue
            target = (path.parent / place).resolve() if place else path
            target = target / "index.html" if target.is_dir() else target
            assert target.is_file(), (path, link)
            if anchor and target in site:
                assert anchor in site[target].anchors or anchor.startswith("__"), (path, link)
            checked += 1
    assert checked > 500


def test_formulas_and_roles_are_rendered(site):
    pages = {path.parent.name: page.text for path, page in site.items() if path.parent.parent.name == "api"}
    pages |= {path.parent.name: page.text for path, page in site.items() if path.parent.name == "math"}
    prose = {name: re.sub(r"<(pre|code|math)\b.*?</\1>", "", text, flags=re.DOTALL) for name, text in pages.items()}
    for name, text in prose.items():
        assert not re.search(r":(func|class|math):|\.\. math|&gt;&gt;&gt;|\$\$|\\frac|``", text), name
    assert sum(text.count("<math") for text in pages.values()) > 30


def test_the_whole_api_is_documented_once():
    names = [name for page in ROOT.glob("docs/api/*.md") for name in ENTRY.findall(page.read_text())]
    assert len(set(names)) == len(names)
    public = {f"imbloss.{name}" for name in imbloss.__all__} - {"imbloss.testing"} | {"imbloss.testing.backend"}
    functions = {f"imbloss.metrics.{name}" for name in imbloss.metrics.__all__ if name[0].islower()}
    assert public | functions <= set(names)
