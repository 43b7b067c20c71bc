"""What the site does beyond Markdown: pages and files from outside docs/, formulas as MathML, docstrings as Markdown.

A hook of mkdocs and, for docstrings, an extension of griffe; see mkdocs.yml.
"""

import html
import re
from pathlib import Path
from textwrap import dedent, indent

import griffe
from latex2mathml.converter import convert
from mkdocs.structure.files import File
from pymdownx.arithmatex import arithmatex_fenced_format

ROOT = Path(__file__).parent.parent
PAGES = {"CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md"}
LINK = re.compile(r"(?<=\]\()([^)#\s:]+)(?=[)#])")


# ---- pages -------------------------------------------------------------------------------------------------------
def on_config(config):
    """```math blocks, as GitHub has them, become formulas."""
    fence = {"name": "math", "class": "arithmatex", "format": arithmatex_fenced_format(which="generic")}
    config.mdx_configs["pymdownx.superfences"] = {"custom_fences": [fence]}
    return config


def on_files(files, config):
    """PAGES, and whatever else of the repository a page links to, at the same path below the site's root."""
    for source, target in PAGES.items():
        files.append(File.generated(config, target, content=(ROOT / source).read_text(encoding="utf-8")))
    linked = {link for page in files.documentation_pages() for link in LINK.findall(page.content_string)}
    for link in sorted(linked):
        name = link.removeprefix("../")
        if link.startswith("../") and name not in PAGES and (ROOT / name).is_file():
            files.append(File.generated(config, name, abs_src_path=str(ROOT / name)))
    return files


def on_page_markdown(markdown, page, config, files):
    """Links that hold in the repository, from docs/ and from its root, to where the site has what they mean."""

    def place(match):
        link = match[1]
        if page.file.src_uri in PAGES.values():
            return PAGES.get(link, link.removeprefix("docs/"))
        name = link.removeprefix("../")
        return PAGES.get(name, name) if link.startswith("../") else link

    return LINK.sub(place, markdown) if "/" not in page.file.src_uri else markdown


def on_page_content(content, page, config, files):
    """LaTeX to MathML: browsers draw it without a script."""
    content = re.sub(r'<(span|div) class="arithmatex">\\[(\[](.*?)\\[)\]]</\1>', _formula, content, flags=re.DOTALL)
    assert "arithmatex" not in content, f"a formula in {page.file.src_uri} is left as it is"
    return content


def _formula(match):
    tex = " ".join(html.unescape(match[2]).split())
    formula = convert(tex, display="block" if match[1] == "div" else "inline")
    return formula.replace("<mi>log</mi>", '<mi>log</mi><mspace width="0.17em"/>')


# ---- docstrings --------------------------------------------------------------------------------------------------
class Docstrings(griffe.Extension):
    """The roles and directives of our docstrings in Markdown; examples in fences."""

    def on_instance(self, *, obj, **_):
        if obj.docstring:
            obj.docstring.value = as_markdown(obj.docstring.value)


def as_markdown(text: str) -> str:
    text = re.sub(r"^( *)\.\. math:: (.*(?:\n\1 +\S.*)*)", _display, text, flags=re.MULTILINE)
    text = re.sub(r":math:`([^`]*)`", lambda match: f"${' '.join(match[1].split())}$", text)
    text = re.sub(r":(?:func|class|mod|meth|data):`~?([^`]*)`", _reference, text)
    text = re.sub(r"``([^`]+)``", r"`\1`", text)
    return re.sub(r"(?:^ *(?:>>>|\.\.\.)(?: .*)?\n(?:^ *\S.*\n)*)+", _example, text + "\n", flags=re.MULTILINE)


def _display(match):
    tex = " ".join(match[2].split())
    return indent(f"\n$$\n{tex}\n$$\n", match[1])


def _reference(match):
    name = match[1].removeprefix("imbloss.")
    named = DOCUMENTED.get(name)
    return f"[`{name}`][{named}]" if named else f"`{match[1]}`"


# what an API page shows, by its name without the package's
DOCUMENTED = {
    name.removeprefix("imbloss."): name
    for page in (ROOT / "docs" / "api").glob("*.md")
    for name in re.findall(r"^::: (\S+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
}


def _example(match):
    margin = re.match(" *", match[0])[0]
    return indent(f"\n```pycon\n{dedent(match[0])}```\n", margin)
