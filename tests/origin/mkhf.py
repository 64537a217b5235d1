#!/usr/bin/env python3
# Copied from shared/origin, kept beside this tree and written apart from it: an origin that is not ours to change.
"""Build a static Hugging-Face-like origin (for nginx-hf.conf) from a directory of model repos.

usage: mkhf.py SRC OUT [--port 18080] [--cdn-port 18081] [--page 0] [--conf nginx-hf.conf]
               [--direct] [--xet xet.json] [--cas http://127.0.0.1:18082]

SRC/<org>/<name>/...   one directory per model repo (only two-segment ids).  Optional overrides in
SRC/<org>/<name>/.hf.json, e.g. {"gated":"manual","private":true,"pipeline_tag":"text-generation",
"library_name":"gguf","tags":["gguf"],"cardData":{},"gguf":{},"safetensors":{},"disabled":false,
"lfs":["*.bin"], "tags_refs":["v1.0"]}.  A private or gated repo needs "Authorization: Bearer hf_good".
--page N   N tree entries per page (Link: rel="next"); 0 = one page.
--direct   serve git files with a plain 200 at /resolve/ instead of the Hub's 307 -> /api/resolve-cache/.
--xet F    JSON {sha256: xet_hash}; those LFS files get X-Xet-Hash + Link rel="xet-auth" (see --cas).
Start:  nginx -p OUT -c OUT/nginx.conf   (daemon off; add '-g "daemon on;"' as wanted)
Standard library only.  Oids are true git ids: blob, tree and commit ids are what git would compute, and an
LFS file's blob id is that of its pointer file, as on the Hub.
"""
import argparse, fnmatch, hashlib, json, os, shutil, sys
from urllib.parse import quote

LFS_EXT = ("*.safetensors *.bin *.gguf *.onnx *.onnx_data *.onnx_data_* *.pt *.pth *.h5 *.msgpack *.model "
           "*.npz *.parquet *.zip *.gz *.tflite *.dat *.ckpt").split()
LFS_MIN = 10 * 1024 * 1024
DATE = "2026-01-02T03:04:05.000Z"
GITDATE = "1767323045 +0000"


def gitoid(kind, data):
    return hashlib.sha1(b"%s %d\0" % (kind.encode(), len(data)) + data).hexdigest()


def scan(root):
    for d, dirs, files in os.walk(root):
        dirs[:] = sorted(x for x in dirs if x not in (".git", ".cache"))
        for f in sorted(files):
            p = os.path.join(d, f)
            rel = os.path.relpath(p, root)
            if rel != ".hf.json":
                yield rel, p


def describe(rel, p, extra):
    size = os.path.getsize(p)
    sha = hashlib.sha256()
    git = hashlib.sha1(b"blob %d\0" % size)
    with open(p, "rb") as f:
        while b := f.read(1 << 20):
            sha.update(b)
            git.update(b)
    e = {"path": rel, "size": size, "src": os.path.realpath(p)}
    if size >= LFS_MIN or any(fnmatch.fnmatch(os.path.basename(rel), g) for g in LFS_EXT + extra):
        ptr = b"version https://git-lfs.github.com/spec/v1\noid sha256:%s\nsize %d\n" % (sha.hexdigest().encode(), size)
        e.update(oid=gitoid("blob", ptr), lfs={"oid": sha.hexdigest(), "size": size, "pointerSize": len(ptr)})
    else:
        e.update(oid=git.hexdigest(), sha256=sha.hexdigest())
    return e


def trees(files):
    """directory path -> git tree oid, computed bottom-up ('' is the root)"""
    kids = {"": {}}
    for e in files:
        parts = e["path"].split("/")
        for i in range(len(parts) - 1):
            d = "/".join(parts[: i + 1])
            kids.setdefault(d, {})
            kids["/".join(parts[:i])][parts[i]] = None
        kids["/".join(parts[:-1])][parts[-1]] = e["oid"]
    oid = {}
    for d in sorted(kids, key=lambda x: -len(x.split("/")) if x else 1):
        rows = []
        for n, o in kids[d].items():
            sub = f"{d}/{n}".lstrip("/")
            rows.append((n + "/", b"40000 " + n.encode() + b"\0" + bytes.fromhex(oid[sub])) if o is None
                        else (n, b"100644 " + n.encode() + b"\0" + bytes.fromhex(o)))
        oid[d] = gitoid("tree", b"".join(r for _, r in sorted(rows)))
    return oid


def put(path, obj):
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "w") as f:
        json.dump(obj, f, separators=(",", ":"))


def q(s):
    return '"' + s.replace("\\", "\\\\").replace('"', '\\"').replace("$", "\\$") + '"'


def main():
    ap = argparse.ArgumentParser()
    ap.add_argument("src"), ap.add_argument("out")
    ap.add_argument("--port", default="18080"), ap.add_argument("--cdn-port", default="18081")
    ap.add_argument("--page", type=int, default=0), ap.add_argument("--direct", action="store_true")
    ap.add_argument("--xet"), ap.add_argument("--cas", default="http://127.0.0.1:18082")
    ap.add_argument("--conf", default=os.path.join(os.path.dirname(os.path.abspath(__file__)), "nginx-hf.conf"))
    a = ap.parse_args()
    xet = json.load(open(a.xet)) if a.xet else {}
    base = f"http://127.0.0.1:{a.port}"
    shutil.rmtree(a.out, ignore_errors=True)
    for d in ("maps", "logs", "tmp", "www/files", "www/lfs", "www/api"):
        os.makedirs(os.path.join(a.out, d))
    M = {k: [] for k in ("access", "commit", "kind", "oid", "size", "sha256", "enc", "xet", "next")}
    for org in sorted(os.listdir(a.src)):
        if not os.path.isdir(os.path.join(a.src, org)):
            continue
        for name in sorted(os.listdir(os.path.join(a.src, org))):
            root = os.path.join(a.src, org, name)
            if not os.path.isdir(root):
                continue
            repo = f"{org}/{name}"
            ov = {}
            if os.path.exists(root + "/.hf.json"):
                ov = json.load(open(root + "/.hf.json"))
            files = [describe(r, p, ov.get("lfs", [])) for r, p in scan(root)]
            t = trees(files)
            commit = gitoid("commit", (f"tree {t['']}\nauthor mkhf <mkhf@localhost> {GITDATE}\n"
                                       f"committer mkhf <mkhf@localhost> {GITDATE}\n\nimport\n").encode())
            refs = ["v" + x if x[0].isdigit() else x for x in ov.get("tags_refs", [])]
            access = ("disabled" if ov.get("disabled") else "private" if ov.get("private")
                      else "gated" if ov.get("gated") else "public")
            M["access"].append((repo, access))
            for rev in ["main", "refs/heads/main", commit] + refs:
                M["commit"].append((f"{repo}@{rev}", commit))
            os.makedirs(f"{a.out}/www/files/{repo}", exist_ok=True)
            os.symlink(os.path.abspath(root), f"{a.out}/www/files/{repo}/{commit}")
            sib, entries = [], []
            for e in files:
                k = f"{repo}/{commit}/{e['path']}"
                lfs = e.get("lfs")
                M["kind"].append((k, "lfs" if lfs else "git"))
                M["oid"].append((k, lfs["oid"] if lfs else e["oid"]))
                M["size"].append((k, str(e["size"])))
                M["enc"].append((k, quote(e["path"])))
                M["sha256"].append((k, lfs["oid"] if lfs else e["sha256"]))
                row = {"type": "file", "oid": e["oid"], "size": e["size"], "path": e["path"]}
                s = {"rfilename": e["path"], "size": e["size"], "blobId": e["oid"]}
                if lfs:
                    row["lfs"] = lfs
                    s["lfs"] = {"sha256": lfs["oid"], "size": lfs["size"], "pointerSize": lfs["pointerSize"]}
                    link = f"{a.out}/www/lfs/{lfs['oid']}"
                    if not os.path.lexists(link):
                        os.symlink(e["src"], link)
                    if lfs["oid"] in xet:
                        row["xetHash"] = xet[lfs["oid"]]
                        M["xet"].append((k, xet[lfs["oid"]]))
                entries.append(row)
                sib.append(s)
            for d in t:
                if d:
                    entries.append({"type": "directory", "oid": t[d], "size": 0, "path": d})
            entries.sort(key=lambda x: (x["type"] == "file", x["path"]))
            info = {"_id": commit[:24], "id": repo, "modelId": repo, "author": org, "sha": commit,
                    "lastModified": DATE, "createdAt": DATE, "private": bool(ov.get("private")),
                    "gated": ov.get("gated", False), "disabled": bool(ov.get("disabled")), "downloads": 0,
                    "likes": 0, "tags": ov.get("tags", []), "usedStorage": sum(e["size"] for e in files)}
            for k in ("pipeline_tag", "library_name", "cardData", "gguf", "safetensors", "config"):
                if k in ov:
                    info[k] = ov[k]
            api = f"{a.out}/www/api/{repo}"
            put(f"{api}/info.json", {**info, "siblings": [{"rfilename": s["rfilename"]} for s in sib]})
            put(f"{api}/info.blobs.json", {**info, "siblings": sib})
            ref = lambda n, kind: {"name": n, "ref": f"refs/{kind}/{n}", "targetCommit": commit}
            put(f"{api}/refs.json", {"branches": [ref("main", "heads")], "converts": [],
                                     "tags": [ref(x, "tags") for x in refs], "pullRequests": []})
            put(f"{api}/xet.json", {"accessToken": "local", "exp": 4102444800, "casUrl": a.cas})
            put(f"{api}/paths.json", entries)
            exp = {"lastCommit": {"id": commit, "title": "import", "date": DATE}}
            sec = {"securityFileStatus": {"status": "safe", "avScan": None, "pickleImportScan": None}}
            for d in t:  # one listing per directory, recursive or not, expanded or not, in pages
                for rec in ("", "r"):
                    pre = d + "/" if d else ""
                    rows = [r for r in entries if r["path"].startswith(pre)
                            and (rec or "/" not in r["path"][len(pre):])]
                    for ex in ("", "x"):
                        out = [{**r, **exp, **(sec if r["type"] == "file" else {})} for r in rows] if ex else rows
                        n = a.page or max(1, len(out))
                        pages = [out[i:i + n] for i in range(0, len(out), n)] or [[]]
                        for i, pg in enumerate(pages):
                            put(f"{api}/tree/{pre}tree.{rec}{ex}.{i or ''}json", pg)
                            if i + 1 < len(pages):
                                M["next"].append((f"{repo}/{pre}{rec}{ex}.{i or ''}",
                                                  f"recursive={'true' if rec else 'false'}&expand="
                                                  f"{'true' if ex else 'false'}&cursor={i + 1}"))
            print(f"{repo} {commit} files={len(files)} lfs={sum('lfs' in e for e in files)} {access}")
    for k, rows in M.items():
        with open(f"{a.out}/maps/{k}.map", "w") as f:
            for x, y in rows:
                f.write(f"{q(x)} {q(y)};\n")
    conf = open(a.conf).read().replace("18080", a.port).replace("18081", a.cdn_port)
    conf = conf.replace("http://127.0.0.1:18082", a.cas)
    if a.direct:
        conf = conf.replace("set $hf_direct 0;", "set $hf_direct 1;")
    open(f"{a.out}/nginx.conf", "w").write(conf)
    print(f"run: nginx -p {os.path.abspath(a.out)} -c {os.path.abspath(a.out)}/nginx.conf   # HF_ENDPOINT={base}")


if __name__ == "__main__":
    sys.exit(main())
