"""Chains of a structure: letters of all residues, which of them were observed, and in which secondary structure they are."""

from dataclasses import dataclass, field
from typing import Any


@dataclass
class Chain:
    """One polymer of the first model."""

    name: str
    alphabet: str
    letters: str
    observed: str
    """0 or 1 for each letter."""
    structure: str | None
    """H (helix), E (strand), C (neither) or - (not observed) for each letter; None where the file says nothing of it."""
    counts: dict[str, int] = field(default_factory=dict)

    def attributes(self) -> dict[str, Any]:
        """What the lake keeps beside the letters."""
        said = {"observed": self.observed, "secondary_structure": self.structure}
        return {**{key: value for key, value in said.items() if value is not None}, **self.counts}


def chains(structure: Any) -> list[Chain]:
    """All polymers of the first model that are proteins or nucleic acids, in the file's order.

    Their letters are those of the sequence that was said (SEQRES, entity_poly), else of the residues observed.
    """
    found = []
    states = _states(structure)
    for part in structure[0]:
        polymer = part.get_polymer()
        if not len(polymer):
            continue
        entity = structure.get_entity_of(polymer)
        alphabet = _alphabet(entity.polymer_type if entity is not None else polymer.check_polymer_type())
        if alphabet is not None:
            sequence = list(entity.full_sequence) if entity is not None else []
            found.append(_chain(part.name, alphabet, polymer, sequence, states))
    return found


def _alphabet(kind: Any) -> str | None:
    import gemmi

    types = gemmi.PolymerType
    if kind in (types.PeptideL, types.PeptideD):
        return "protein"
    return "dna" if kind in (types.Dna, types.Rna, types.DnaRnaHybrid) else None


def _chain(name: str, alphabet: str, polymer: Any, sequence: list[str], states: list["_Span"] | None) -> Chain:
    residues = list(polymer.first_conformer())
    names = [one.partition(",")[0] for one in sequence] or [residue.name for residue in residues]
    places = [(residue.label_seq or 0) - 1 for residue in residues] if sequence else list(range(len(residues)))
    observed, structure = ["0"] * len(names), ["-"] * len(names)
    of_chain = _of_chain(name, residues, states)
    counts = dict.fromkeys(("modified", "unknown", "unplaced", "mismatched", "alternatives", "insertions"), 0)
    for place, residue, state in zip(places, residues, of_chain, strict=True):
        counts["alternatives"] += any(atom.altloc != "\0" for atom in residue)
        counts["insertions"] += residue.seqid.icode != " "
        if not 0 <= place < len(names):
            counts["unplaced"] += 1
            continue
        counts["mismatched"] += residue.name not in sequence[place].split(",") if sequence else 0
        observed[place], structure[place] = "1", state
    letters = []
    for one in names:
        letter, kind = _letter(one, alphabet)
        letters.append(letter)
        if kind:
            counts[kind] += 1
    kept = {key: count for key, count in counts.items() if count}
    return Chain(
        name, alphabet, "".join(letters), "".join(observed), "".join(structure) if states is not None else None, kept
    )


def _letter(name: str, alphabet: str) -> tuple[str, str | None]:
    """One letter of a residue, its parent's where it is modified, and whether it is modified or unknown."""
    import gemmi

    code = gemmi.find_tabulated_residue(name).one_letter_code
    if not code.isalpha() or code in "Xx":
        return ("X" if alphabet == "protein" else "N"), "unknown"
    return code.upper(), "modified" if code.islower() else None


@dataclass(frozen=True)
class _Span:
    state: str
    start: Any  # gemmi's AtomAddress
    end: Any


def _states(structure: Any) -> list[_Span] | None:
    """Helices, then strands, which go before them where both claim a residue; None where the file has neither."""
    spans = [_Span("H", helix.start, helix.end) for helix in structure.helices]
    spans += [_Span("E", strand.start, strand.end) for sheet in structure.sheets for strand in sheet.strands]
    return spans or None


def _of_chain(name: str, residues: list[Any], states: list[_Span] | None) -> list[str]:
    """The state of each residue that was observed."""
    found = ["C"] * len(residues)
    keys = [_key(residue.seqid) for residue in residues]
    index = {key: place for place, key in reversed(list(enumerate(keys)))}
    for span in states or ():
        if span.start.chain_name != name:
            continue
        start, end = _key(span.start.res_id.seqid), _key(span.end.res_id.seqid)
        if start in index and end in index:
            found[index[start] : index[end] + 1] = span.state * max(index[end] + 1 - index[start], 0)
        else:
            found = [span.state if start <= key <= end else old for key, old in zip(keys, found, strict=True)]
    return found


def _key(seqid: Any) -> tuple[int, str]:
    return (-(2**31) if seqid.num is None else int(seqid.num), seqid.icode)
