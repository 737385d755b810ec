"""PDB and mmCIF, plain or gzip: the sequences of their chains, and what the file says of each residue.

gemmi parses. Kept are letters, which residues were observed, the file's secondary structure, method and resolution, and
counts; no coordinates, and no words of the header.
"""

import re
from collections import Counter
from pathlib import Path
from typing import Any

from diastole.lake.errors import ItemError

from . import Limits, ReadOptions, source
from .chains import Chain, chains
from .records import Records

name = "structure"

TEXT_BYTES = 2**27
"""Most bytes of text: gemmi holds all of it, and several times as much beside it."""
_PDB_ROW = re.compile(
    rb"(HEADER|OBSLTE|TITLE |COMPND|REMARK|CRYST1|EXPDTA|MODEL |ATOM  |HETATM|SEQRES|HELIX |SHEET |AUTHOR|DBREF |ORIGX1)[ \w]"
)
_CIF_ROW = re.compile(rb"^(_entry\.id|_atom_site\.|_entity|_audit|_struct|_citation|loop_)", re.MULTILINE)
_ACCESSION = re.compile(r"(?i:pdb_[0-9]{4})?[0-9][A-Za-z0-9]{3}")
METHODS = frozenset(
    {
        "X-RAY DIFFRACTION", "SOLUTION NMR", "ELECTRON MICROSCOPY", "NEUTRON DIFFRACTION", "ELECTRON CRYSTALLOGRAPHY", "SOLID-STATE NMR",
        "FIBER DIFFRACTION", "POWDER DIFFRACTION", "SOLUTION SCATTERING", "EPR", "THEORETICAL MODEL", "INFRARED SPECTROSCOPY",
    }
)  # fmt: skip


def sniff(head: bytes) -> bool:
    """Whether it begins with a record of the PDB's, or is a CIF of a structure."""
    return _is_cif(head) or all(map(_PDB_ROW.match, (head.splitlines() + [b""] * 2)[:2]))


def preflight(path: Path, limits: Limits) -> None:
    """Hold a plain file to the limit; a gzip file is held to it as it is read. A bgzip file must have its end."""
    if not source.is_gzip(path) and path.stat().st_size > min(limits.item_bytes, TEXT_BYTES):
        raise _too_large()
    source.check_bgzip_end(path)


def read(path: Path, folder: Path, options: ReadOptions) -> list[dict[str, Any]]:
    """Write the letters of proteins, and apart from them those of nucleic acids, one record for each chain.

    A record's id is the name of its chain, after that of the entry where it is an id of the PDB's: 1A8O_A.
    """
    data = _text(path, options.limits)
    structure, found = _structure(data)
    attributes = {"format": "mmcif" if _is_cif(data[:4096]) else "pdb", **_of_entry(structure)}
    entry_id = _info(structure, "_entry.id")
    if _ACCESSION.fullmatch(entry_id):
        attributes["accession"] = entry_id.upper()
    if not found:
        raise ItemError("unsupported", "it holds no chain of a protein or nucleic acid with observed residues")
    entries = []
    for alphabet, suffix in (("protein", ""), ("dna", "#dna")):
        if those := [chain for chain in found if chain.alphabet == alphabet]:
            entry = _write(folder, alphabet, those, attributes.get("accession"))
            entries.append({**entry, "suffix": suffix, "attributes": attributes, "count": len(found)})
    return entries


def _write(folder: Path, alphabet: str, those: list[Chain], accession: str | None) -> dict[str, Any]:
    names: Counter[str] = Counter()
    with (
        (folder / f"{alphabet}.bin").open("xb") as letters,
        (folder / f"{alphabet}.jsonl").open("x", encoding="utf-8") as lines,
    ):
        records = Records(alphabet, letters, lines)
        for chain in those:
            names[chain.name] += 1
            again = f"-{names[chain.name]}" if names[chain.name] > 1 else ""
            record_id = f"{accession}_{chain.name}{again}" if accession else f"{chain.name}{again}"
            records.begin(record_id.encode() or b"-")
            records.add(chain.letters.encode())
            records.end(chain.attributes())
    files = {"file": f"{alphabet}.bin", "records": f"{alphabet}.jsonl"}
    return {"kind": "sequences", **files, "meta": {"alphabet": alphabet}, "modality": alphabet}


def _text(path: Path, limits: Limits) -> bytes:
    """All of it. Raises ItemError where it is too large, or does not end as it should."""
    pieces, limit = [], min(limits.item_bytes, TEXT_BYTES)
    with source.opened(path, limits.item_bytes) as stream:
        while piece := stream.read():
            if stream.count > limit:
                raise _too_large()
            pieces.append(piece)
    data = b"".join(pieces)
    head, tail = data[:4096], data[-200:].rstrip()
    if _is_cif(head):
        whole = not re.search(rb"^data_\S*\s*\n#\s*\n", head, re.MULTILINE) or tail.endswith(b"#")
    else:
        whole = not head.startswith(b"HEADER") or tail.rpartition(b"\n")[2].startswith((b"END", b"MASTER", b"CONECT"))
    if not whole:
        raise ItemError("truncated", "it does not end as such a file does (END, #); copy it again")
    return data


def _structure(data: bytes) -> tuple[Any, list[Chain]]:
    """gemmi's structure, and its chains. Raises ItemError."""
    import gemmi

    try:
        if _is_cif(data[:4096]):
            blocks = [block for block in gemmi.cif.read_string(data) if block.find_loop("_atom_site.id")]
            if len(blocks) != 1:
                raise ItemError("unsupported", f"it holds {len(blocks)} blocks with atoms; one is read")
            structure = gemmi.make_structure_from_block(blocks[0])
        else:
            structure = gemmi.read_pdb_string(data)
        if not len(structure):
            raise ItemError("unreadable", "it holds no model")
        structure.merge_chain_parts()
        structure.setup_entities()
        structure.assign_label_seq_id(False)
        return structure, chains(structure)
    except (RuntimeError, ValueError, IndexError) as error:  # UnicodeError, too, where a name is not UTF-8
        raise ItemError("unreadable", "it cannot be parsed; check it with gemmi validate") from error


def _of_entry(structure: Any) -> dict[str, Any]:
    said = _info(structure, "_exptl.method").upper()
    methods = [method if method in METHODS else "OTHER" for method in re.split(r"\s*;\s*", said) if method]
    resolution = float(structure.resolution)
    return {
        "method": methods[:4] or None,
        "resolution": round(resolution, 3) if 0 < resolution < 1000 else None,
        "models": len(structure),
    }


def _info(structure: Any, key: str) -> str:
    """A text of the header; empty where there is none, or none in UTF-8."""
    try:
        return str(structure.info[key]) if key in structure.info else ""
    except UnicodeDecodeError:
        return ""


def _is_cif(head: bytes) -> bool:
    text = re.sub(rb"^\s*(#[^\n]*\n\s*)*", b"", head)
    return text[:5].lower() == b"data_" and _CIF_ROW.search(text) is not None


def _too_large() -> ItemError:
    return ItemError("too_large", f"it has more than {TEXT_BYTES} bytes of text, or than max_item_bytes")
