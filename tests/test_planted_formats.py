"""Fault 43 on every format: who a file is of is planted wherever the format has room for words; nothing of it is kept or said."""

import io
import json
import sys
import zipfile

import dicoms
import edfio
import gemmi
import nibabel
import numpy as np
import pytest
import tifffile
from PIL import Image, PngImagePlugin
from pydicom.uid import generate_uid
from written import everything, hits

from diastole.cluster import cli
from diastole.lake.items import read_items
from diastole.lake.layout import Lake
from diastole.workers.ingest import IngestOptions, ingest

NAME, NUMBER, BORN = "PLANTEDSMITH", "MRN7741309", "19570213"
ALL = f"{NAME} {NUMBER} {BORN}"
SHORT = f"{NAME}{NUMBER}"
WORDS = [NAME, NUMBER, BORN, "1957-02-13", "13-FEB-1957", "13.02.57", "1957.02.13"]
NEEDED = {"Modality", "PhotometricInterpretation", "PatientPosition", "ImageType", "SpecificCharacterSet"}
"""Codes without which a DICOM file is none."""
FORMATS = {
    "dicom", "nifti1", "nrrd", "metaimage", "tiff", "png", "jpeg", "edf", "bdf", "brainvision", "eeglab", "fif",
    "fasta", "genbank", "vcf", "pdb", "mmcif",
}  # fmt: skip
WAVES = np.sin(np.arange(2000.0)).reshape(4, 500) * 40


def dicom(folder):
    made = dicoms.slice_at(0, 0.0)
    for element in made.iterall():
        if element.keyword in NEEDED or element.tag.group == 2:
            continue
        if element.VR in ("LO", "PN", "ST", "LT", "UT", "UC"):
            element.value = ALL
        elif element.VR in ("SH", "CS", "AE"):
            element.value = NAME
    made.PatientName, made.PatientID, made.PatientBirthDate = NAME, NUMBER, BORN
    made.ImageComments = made.PatientComments = made.OtherPatientNames = made.InstitutionName = ALL
    block = made.private_block(0x11, ALL, create=True)
    block.add_new(1, "LT", ALL)
    made.SeriesInstanceUID = generate_uid()  # else what is cut would be read with what is whole
    made.save_as(folder / f"{NAME} dcm.dcm")


def volumes(folder):
    image = nibabel.Nifti1Image(np.arange(120, dtype=np.int16).reshape(4, 5, 6), np.eye(4))
    for field in ("descrip", "aux_file", "db_name", "intent_name"):
        image.header[field] = SHORT[:10].encode() if field == "db_name" else SHORT[:16].encode()
    image.header["descrip"] = ALL.encode()
    image.header.extensions.append(nibabel.nifti1.Nifti1Extension("comment", ALL.encode()))
    nibabel.save(image, folder / f"{NAME} nii.nii.gz")
    data = np.arange(60, dtype="<i2").tobytes()
    said = (
        f"NRRD0005\n# {ALL}\ntype: int16\ndimension: 3\nsizes: 3 4 5\nendian: little\ncontent: {ALL}\nencoding: raw\n"
    )
    said += "space: left-posterior-superior\nspace directions: (1,0,0) (0,1,0) (0,0,1)\nspace origin: (0,0,0)\n"
    said += f'labels: "{NAME}" "{NUMBER}" "{BORN}"\nsample units: "{NAME}"\n{NAME}:={ALL}\n\n'
    (folder / f"{NAME} nrrd.nrrd").write_bytes(said.encode() + data)
    said = f"ObjectType = Image\nNDims = 3\nComment = {ALL}\nName = {NAME}\nPatientID = {NUMBER}\nBinaryData = True\n"
    said += "BinaryDataByteOrderMSB = False\nDimSize = 3 4 5\nElementSpacing = 1 1 1\nElementType = MET_SHORT\n"
    (folder / f"{NAME} mha.mha").write_bytes(f"{said}ElementDataFile = LOCAL\n".encode() + data)


def pictures(folder):
    said = PngImagePlugin.PngInfo()
    for add in (said.add_text, said.add_itxt):
        add("Patient", ALL)
        add(NAME, ALL)
    said.add_text("Comment", ALL, zip=True)
    picture = Image.fromarray(np.arange(1200, dtype=np.uint8).reshape(30, 40))
    exif = Image.Exif()
    exif[0x010E] = exif[0x013B] = exif[0x8298] = ALL
    picture.save(folder / f"{NAME} png.png", pnginfo=said, exif=exif)
    picture.save(folder / f"{NAME} jpg.jpg", comment=ALL.encode(), exif=exif)
    stack = np.arange(3 * 20 * 21, dtype=np.uint16).reshape(3, 20, 21)
    words = {"Name": ALL, "Description": ALL, "Channel": {"Name": [NAME]}, "MapAnnotation": {"Value": {NAME: ALL}}}
    shared = {"ome": True, "software": ALL, "datetime": None}
    told = [(315, "s", 0, ALL, True), (33432, "s", 0, ALL, True), (65000, "s", 0, ALL, True)]
    tifffile.imwrite(folder / f"{NAME} ome.ome.tif", stack, metadata={"axes": "ZYX", **words}, extratags=told, **shared)
    with tifffile.TiffWriter(folder / f"{NAME} svs.svs") as writer:  # as Aperio's: the slide, its levels, its label
        tiles = {"tile": (32, 32), "photometric": "rgb", "compression": "zlib", "metadata": None, "extratags": told}
        first = (
            f"Aperio Image Library v1\n100x100 |AppMag = 20|MPP = 0.5|User = {NAME}|Title = {ALL}|Filename = {NUMBER}"
        )
        pixels = np.random.default_rng(0).integers(0, 255, (100, 100, 3)).astype(np.uint8)
        writer.write(pixels, description=first, **tiles)
        writer.write(pixels[::2, ::2], subfiletype=1, description=first, **tiles)
        label = pixels[:20, :30]
        writer.write(label, photometric="rgb", description=f"Aperio\nlabel 30x20 {ALL}", metadata=None)


def recordings(folder):
    for kind, module in (("edf", edfio.Edf), ("bdf", edfio.Bdf)):
        signal_of = edfio.EdfSignal if kind == "edf" else edfio.BdfSignal
        signals = [
            signal_of(WAVES[0], 50, label="EEG Cz", transducer_type=ALL, prefiltering=ALL),
            signal_of(WAVES[1], 50, label=NAME),
        ]
        patient = edfio.Patient(name=NAME, code=NUMBER, additional=[BORN])
        said = edfio.Recording(
            hospital_administration_code=NUMBER,
            investigator_technician_code=NAME,
            equipment_code=NUMBER,
            additional=[BORN],
        )
        notes = [edfio.EdfAnnotation(1, 1, ALL), edfio.EdfAnnotation(2, None, NAME)]
        module(signals, patient=patient, recording=said, annotations=notes).write(folder / f"{NAME} {kind}.{kind}")
    (folder / f"{NAME} 2.vhdr").write_text(
        f"Brain Vision Data Exchange Header File Version 1.0\n; {ALL}\n[Common Infos]\nCodepage=UTF-8\n"
        f"DataFile={NAME} 2.eeg\nMarkerFile={NAME} 2.vmrk\nDataFormat=BINARY\nDataOrientation=MULTIPLEXED\n"
        "NumberOfChannels=2\nSamplingInterval=4000\n[Binary Infos]\nBinaryFormat=INT_16\n"
        f"[Channel Infos]\nCh1=Fp1,{NAME},0.1,µV\nCh2={SHORT},,0.1,µV\n[Comment]\n{ALL}\nSubject: {NAME}\n"
    )
    (folder / f"{NAME} 2.vmrk").write_text(
        f"Brain Vision Data Exchange Marker File Version 1.0\n[Marker Infos]\nMk1=New Segment,,1,1,0,{BORN}010101000000\n"
        f"Mk2=Stimulus,{NAME},10,5,0\nMk3=Comment,{ALL},20,1,0\nMk4={NAME},{NUMBER},30,1,0\n"
    )
    (folder / f"{NAME} 2.eeg").write_bytes(WAVES[:2].T.astype("<i2").tobytes())
    import scipy.io

    labels = np.array([("Fp1", NAME), (NUMBER, ""), ("Cz", ALL), ("E1", "")], [("labels", "O"), ("type", "O")])[None]
    events = np.array([(NAME, 10.0, 1.0), (ALL, 20.0, 0.0)], [("type", "O"), ("latency", "O"), ("duration", "O")])[None]
    fields = {"nbchan": 4.0, "trials": 1.0, "srate": 250.0, "pnts": 500.0, "data": WAVES.astype("f4")}
    words = dict.fromkeys(
        ("setname", "filename", "subject", "session", "group", "condition", "comments", "history"), ALL
    )
    fields |= {"chanlocs": labels, "event": events, "ref": NAME, NAME: ALL, **words}
    scipy.io.savemat(folder / f"{NAME} set.set", {"EEG": fields})
    import mne

    info = mne.create_info(["Fp1", "Cz", NAME, NUMBER], 250.0, "eeg", verbose="ERROR")
    info["subject_info"] = {"his_id": NUMBER, "last_name": NAME, "first_name": NAME, "middle_name": NUMBER}
    info["description"], info["experimenter"], info["proj_name"] = ALL, NAME, ALL
    raw = mne.io.RawArray(WAVES * 1e-6, info, verbose="ERROR")
    raw.info["bads"] = [NAME]
    raw.set_annotations(mne.Annotations([0.5, 1], [0.1, 0], [ALL, NAME]))
    raw.save(folder / f"{NAME}_raw.fif", verbose="ERROR")


def molecules(folder):
    (folder / f"{NAME} fasta.fasta").write_text(f">{SHORT} {ALL}\nACGTACGTNN\n>{NUMBER}|{BORN}\nGGGTTTA\n")
    feature = f'     source          1..12\n                     /isolate="{ALL}"\n                     /note="{ALL}"\n'
    (folder / f"{NAME} gb.gb").write_text(
        f"LOCUS       {SHORT} 12 bp DNA linear BCT 13-FEB-1957\nDEFINITION  {ALL}.\nACCESSION   {SHORT}\nVERSION     {SHORT}.1\n"
        f"KEYWORDS    {NAME}.\nSOURCE      {NAME}\n  ORGANISM  {NAME}\n            {ALL}.\nREFERENCE   1  (bases 1 to 12)\n"
        f"  AUTHORS   {NAME}\n  TITLE     {ALL}\n  JOURNAL   {ALL}\nCOMMENT     {ALL}\n"
        f"FEATURES             Location/Qualifiers\n{feature}     {NAME[:12]}    2..5\n"
        f'     gene            2..5\n                     /gene="{NAME}"\nORIGIN      {ALL}\n        1 acgtnacgta cg\n//\n'
    )
    declared = "".join(f'##{kind}=<ID={key},Number=1,Type={form},Description="{ALL}">\n' for kind, key, form in (
        ("INFO", "DP", "Integer"), ("INFO", NAME, "String"), ("INFO", "SVTYPE", "String"), ("FORMAT", "GT", "String"), ("FORMAT", NUMBER, "String"),
    ))  # fmt: skip
    (folder / f"{NAME} vcf.vcf").write_text(
        f"##fileformat=VCFv4.2\n##fileDate={BORN}\n##source={ALL}\n##reference=file:///{NAME}/hg19.fa\n##{NAME}={ALL}\n"
        f'##contig=<ID={SHORT},length=99,assembly={NAME}>\n##FILTER=<ID={NAME},Description="{ALL}">\n'
        f"##SAMPLE=<ID={NAME},Description={NUMBER}>\n##PEDIGREE=<Child={NAME},Mother={NUMBER}>\n{declared}"
        f"#CHROM\tPOS\tID\tREF\tALT\tQUAL\tFILTER\tINFO\tFORMAT\t{NAME}\t{NUMBER}\n"
        f"{SHORT}\t5\t{NAME}\tA\t<{NAME}>\t3\t{NAME}\tDP=3;{NAME}={NUMBER};SVTYPE={NAME}\tGT:{NUMBER}\t0|1:{NAME}\t1/1:{BORN}\n"
    )
    made = gemmi.Structure()
    chain = gemmi.Chain("A")
    for number, name in enumerate(("MSE", "GLY", "TRP", "ALA"), 1):
        residue = gemmi.Residue()
        residue.name, residue.seqid, residue.het_flag = name, gemmi.SeqId(number, " "), "A"
        atom = gemmi.Atom()
        atom.name, atom.element, atom.pos = "CA", gemmi.Element("C"), gemmi.Position(4.0 * number, 0, 0)
        residue.add_atom(atom)
        chain.add_residue(residue)
    made.add_model(gemmi.Model(1))
    made[0].add_chain(chain)
    made.setup_entities()
    made.name = SHORT
    words = "".join(f"{key:<10}{ALL}\n" for key in ("TITLE", "COMPND", "SOURCE", "KEYWDS", "AUTHOR", "REMARK 999"))
    head = f"HEADER    {NAME:<40}13-FEB-57   1ABC\n{words}"
    (folder / f"{NAME} pdb.pdb").write_text(head + made.make_pdb_string().split("\n", 1)[1])
    document = made.make_mmcif_document()
    block = document.sole_block()
    for key in ("_struct.title", "_struct.pdbx_descriptor", "_citation.title", "_audit_author.name", "_entity.details"):
        block.set_pair(key, f"'{ALL}'")
    block.set_pair(f"_{NAME}.{NUMBER}", f"'{ALL}'")
    (folder / f"{NAME} cif.cif").write_text(f"# {ALL}\n" + document.as_string())


def archive(folder):
    with zipfile.ZipFile(folder / f"{NAME} zip.zip", "w", zipfile.ZIP_DEFLATED) as packed:
        packed.comment = ALL.encode()
        for path in (folder / f"{NAME} nii.nii.gz", folder / f"{NAME} fasta.fasta"):
            info = zipfile.ZipInfo(f"{NAME} {NUMBER}/{path.name}")
            info.comment = ALL.encode()
            packed.writestr(info, path.read_bytes())


def planted(root):
    """One good file of each format, and one that ends too early."""
    whole, cut = root / f"{NAME} {NUMBER}" / BORN, root / "cut" / f"{NAME}"
    whole.mkdir(parents=True)
    cut.mkdir(parents=True)
    for write in (dicom, volumes, pictures, recordings, molecules, archive):
        write(whole)
    dicom(cut)
    for path in sorted(whole.iterdir()):
        data = path.read_bytes()
        assert any(word in path.name for word in WORDS)
        data = (cut / path.name).read_bytes() if path.suffix == ".dcm" else data
        (cut / path.name).write_bytes(data if path.suffix in (".vhdr", ".vmrk") else data[: len(data) * 3 // 5])
    return len(list(whole.iterdir())) - 2


@pytest.mark.fault(43)
@pytest.mark.filterwarnings("ignore")
def test_of_whom_a_file_is_is_nowhere_in_the_lake_nor_in_what_is_said(tmp_path, monkeypatch, capfd, caplog):
    monkeypatch.setenv("DIASTOLE_KEYS", str(tmp_path / "keys"))
    lake = Lake.create(str(tmp_path / "lake"))
    monkeypatch.setenv("DIASTOLE_LAKE", lake.store.root)
    monkeypatch.setenv("COLUMNS", "400")
    sources = planted(tmp_path / "in")
    capfd.readouterr()
    said = io.StringIO()

    def say(*arguments, code=0):
        monkeypatch.setattr(sys, "argv", ["diastole", *arguments])
        answered = cli.answer()
        out, err = capfd.readouterr()
        said.write(out + err)
        assert answered in (code, 0), err
        return out

    say("ingest", "d", str(tmp_path / "in"), code=1)
    (tmp_path / "in" / f"{NAME} {NUMBER}" / BORN / f"{NAME} png.png").unlink()
    say("refresh", "d", str(tmp_path / "in"), code=1)
    say("items", "d")
    say("items", "d", "--json")
    say("quarantine")
    say("describe", "d", code=1)
    say("check", "--deep", code=1)
    text = said.getvalue() + caplog.text
    assert not [word for word in WORDS if word.lower() in text.lower()]
    assert hits(lake.store.local, WORDS) == set()
    rows = read_items(lake, "d").to_pylist()
    assert {json.loads(row["attributes"]).get("format") for row in rows} >= FORMATS, sources
    failed = sum(b"truncated" in data for _, data in everything(lake.store.local / "quarantine"))
    assert failed


def test_the_search_sees_what_is_let_through(tmp_path, monkeypatch):
    monkeypatch.setenv("DIASTOLE_KEYS", str(tmp_path / "keys"))
    lake = Lake.create(str(tmp_path / "lake"))
    (tmp_path / f"{NAME} fasta.fasta").write_text(">x\nACGT\n")
    volumes(tmp_path)
    ingest(lake, "d", [tmp_path / f"{NAME} nii.nii.gz"], IngestOptions(public=True))
    assert {word for _, word in hits(lake.store.local, WORDS)} == {NAME}
