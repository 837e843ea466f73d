import sys, torch
from functools import partial
from dataclasses import replace
import sparse_multiply as s
from timed import graph_time, relative_error
from featherweight.kernels.cuda import stream, two_level, two_of_four
C = lambda *c: (c,)
def shape(w, m, cuts): return stream.shape_of(*w.chunked.cut, m, w.chunked.segment, *stream._limits(torch.device("cuda", 0)), cuts=cuts)
def job(n, k, cutlist, ms=(1,)):
    p, sp = s.draw_two_level(n, k, 3, False, 0.01, "cuda")
    dense = s.dense_of(p, sp).double()
    three = s.weights_two_of_four(n, k, "cuda")
    runs = [("spqr", two_level.encode(p, 3, 3, sp), two_level, dense), ("plain", two_level.encode(p, 3, 3, None), two_level, None),
            ("2:4 i4", three[1][1], two_of_four, three[1][2].double()), ("2:4 bf", three[0][1], two_of_four, three[0][2].double())]
    for m in ms:
        x = torch.randn(m, k, device="cuda", dtype=torch.bfloat16)
        y = torch.empty(m, n, device="cuda", dtype=torch.bfloat16)
        for name, w, mod, d in runs:
            copies = [replace(w, chunked=each) for each in s.copies_of(w.chunked)]
            for cuts in cutlist:
                try:
                    sh = shape(w, m, cuts)
                    y.fill_(float("nan"))
                    mod.multiply(x, w, None, y, sh)
                    err = relative_error(y, x.double() @ d.T) if d is not None else 0
                    t = graph_time([partial(mod.multiply, x, each, None, y, sh) for each in copies], 6)
                    print(f"{n}x{k} M={m} {name:6} {sh.warps}+{sh.collectors} stages {sh.stages} res {sh.resident} blocks {sh.blocks} whole {sh.whole_tiles} split {sh.split_chunks}: {t.median:6.2f} us err {err:.1e} {w.chunked.nbytes/t.median/1e6:.2f} TB/s", flush=True)
                except Exception as e:
                    print(n, k, m, name, cuts, repr(e)[:200], flush=True)
        print(flush=True)
if len(sys.argv) > 1:
    n, k = 28672, 4096
    p, sp = s.draw_two_level(n, k, 3, False, 0.01, "cuda")
    x = torch.randn(1, k, device="cuda", dtype=torch.bfloat16); y = torch.empty(1, n, device="cuda", dtype=torch.bfloat16)
    for w, mod in ((two_level.encode(p, 3, 3, sp), two_level), (s.weights_two_of_four(n, k, "cuda")[1][1], two_of_four)):
        for cuts in (C(8, 1, 4, 2), C(16, 1, 4, 1)):
            mod.multiply(x, w, None, y, shape(w, 1, cuts))
    torch.cuda.synchronize()
    sys.exit()
A = [C(8, 1, 4, 2), C(16, 1, 4, 1), C(16, 2, 4, 1), C(8, 1, 3, 3), C(22, 1, 2, 1), C(8, 1, 2, 2)]
job(28672, 4096, A)
job(8192, 8192, A[:5])
job(4096, 4096, A[:3])
job(28672, 4096, [stream.CUTS, C(16, 2, 2, 1), C(8, 2, 2, 2), C(8, 2, 3, 1)], (16, 8))
job(8192, 8192, [stream.CUTS], (16, 4))
