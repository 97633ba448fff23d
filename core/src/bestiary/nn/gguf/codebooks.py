"""Decoders of the block formats with a codebook: IQ1_S … IQ4_XS.

A quant of IQ1, IQ2 and IQ3 is the number of a row in a grid: eight (or four) magnitudes out of three or eight possible
ones. The grids are lists of chosen lattice points in ascending order, so a set of points says everything: point p is
the number whose digits, base = number of magnitudes and least significant first, are the row. Each grid stands below as
such a set, one bit per point, compressed. Conventions as in `decoders`.
"""

from __future__ import annotations

import base64
import zlib
from functools import cache

import numpy as np
import torch

from .decoders import constant, fields, half, lookup, planes, signed

IQ4_VALUES = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)

_TERNARY = (-1, 0, 1)
_THREE = (8, 25, 43)
_EIGHT = (4, 12, 20, 28, 36, 44, 52, 62)
_ODD = (1, 3, 5, 7, 9, 11, 13, 15)

_IQ1_S = (
    "c-k#eK}(!R7=CxE;dM-9V?RN1diSfb(^(PgE$L;EU0C#DLh=VZ*|bQ>IZZw%yXlwN6ha`hG?#HO$v6$G@ldv(umMk2dT8mb2WdTox*h^v8VtnD"
    "uD#8?@Vw9Syw7v(LR2?w<}y}3b9YJG^C&5*&qs>Nl?x;NhAB!%0hRecnsm$a2YwJ@;QqccSPG~@n#@N5uBY$^gNY22s7}?HYgoxmY#Y+!Ajh1y"
    "xWA4l1OzVO1-XRyWBes^wA;LAoBq<x!%nuPhFWp9`{&R@7DG%<XIwD^Is3Q$Jf@<B<<hd(0^?jzIHG8vQn*?-$Ub(LsHW&@kYNcQ%|}dP%c;av"
    "8KJU^mWiJv*28-WD<$YEG%#}+D!ES;XeDuFD(VlG#i@A4$V;H%7rH52w&LB_pg1xSvl=L<CZ@9?{WdkSxbxSuMq|l64F4MqT|O(RS}O@H(bLXv"
    "Hn!_OntvSw2GXTKiD_6XGLxujp0!)qyF+V=7Bv?g3oFy??D1-6?{(2le%HQrc>Le(m#@Cb_P%)g$;r#{<KcsUbe#9?p_<1{H>jE?+1SCIq;Fwj"
    "@yPMjA_U90?}vdY$)D1%>fQq-z{36HBT$I&mG*v%J#A~V%aSj@pZtCEAg}V1eou`2@uUxU_YQ=)6;l3U7EjmAKr#y2F0kdO91c}@u6ikZ68>90"
    "+)KINV7E3oVy0wcNC7Qg*Gnz$6Ckekcj5w;yQl$8BcV}uIeIA*;9XR~L2uzcrHYS+2)y-rqrtcg6e{stpn$cM#il(dTBx(R&0u-;P1DmAvG}u@"
    "dX;b%ns9v~6p49X^c}lqEMlIFjzJBbrp$X4T{{D_p5YV7e^~xM<^E7<_56qcAaL=FI+lT|4v2#Y&dpW2-Egd@Fdf5G@Dheeu*|v(bMFD;1sQ1"
)
_IQ2_XXS = (
    "c-nPRORB^$43oj#tB`je2YP^R=KfcCw)5@K5e=lV<VbEmf91ogR%p3E0BR^O#16P=^@J3)+t0mx___f>P^zDolEn6;is&dxI!#Zg_{KuzkVd4M"
    "w`?l*l~*(z5~c8Qj-!-YZym34v`$TQ4<4*~)dpL;rq|+W4irx`d$&)6^vGb7UkLBrzcFbHqcf>sMFwRxr;MTG;*}m%Qlby-@@TSk)X7om@@#uK"
    "QIjUUWQ&$2&y}*gX5TV=Bc|Cuh1wL(2Kn3A3Yj<N%;gblzhT7_jxp@MF=lA5st5R^Hl2J=^JV`E{Z0D^#$6R7"
)
_IQ2_XS = (
    "c-mc2TdsvL2pkgnkBRPwCicH3cK=&BJX-bM<{ZTW!^|+oxJIi-qkD|rsuaR~iB<*?x~C4>8J0pJW<V>X*vo#SY&(-c)w(<-fCU6QVt|)*=>oJ="
    "N8h~B3mmYKBw*Y)Ca<s*uvOak7T*la5<g=kAh?T96(5+bR(Mt@J=L5^n!u1sF+~=p=RjVCGbM+vDH*59tF!>kC`)-u3GzO}jM8X_r-*1ytubG*"
    "&a^iqGs?p-do}D8x2NWXU?%O)=7t88q040RdJ=Ak)9T+$YBcFD31^6BC_W+mG1}iEA-T}Oj@u6-pQ1yByIl9%`W3mW#F%j~<yh(N0zSL~oH^Zy"
    "%}}tQx4=M73#xoc?jNErTmD?iDs40;(&MG>YYMNuDE=SK;cc#9vM%q_=>7msuqjC"
)
_IQ2_S = (
    "c-n1JU5W-F3~NE(E9iYHjPDBe{#V(wI=kPpE5rQ7#3X8F%Z9aF@G^(h-0EI3Em0|W3^QwctZ7zp0a8G#rYWS&oF&YfEj@sgh^u5FBBgC>LAkBE"
    "EtarKv-X}c)kMD5E9g)N*35uFS6j&;COQ!QC2=T0oAzp}=fs8f?3xctXeG?g^dQAA!2(KVP=j1x!<Qgx@l7F)Pu!TMd$m>{ZzEray(N$AzRb24"
    ")#*U9zYZZF^+2!@EVQ9?ARiEH!J<ErE8usn4?()-BQhW*1pE<<S|Z6aT82aQO}QP4+el6zUY~*z7~Sl6pK?p!Q_DMIhH4w7?joIO9P^#Dw9CRS"
    "7mu8OBC|vDii4FoWN_zK9m?6y$}qXC*pyH_2f!)+bXep&HXz~CYasM7Fd3(JhmM~KIbkHJ7yU4;E692~{FNElHOf~Fzm+TBn!W(JyjC6"
)
_IQ3_XXS = (
    "c-l=-F%H5o3_M%0RAmZ7_lgPeigaLyA4Q!IuVCbv_?)J2Rn;aw-<^~BWtxCXwzFx0%xW)eST<YW5KL&L;j#hAAHoX-c)&}FY<X@1m|7IGsjrX>"
    "q7@bAuHrcP3L2_`6x)_>^v5;&o?@Fdagv_Uo9H*utGOGEJ93R6P|L2rgx{U}Y-UnrS3sKYtPIbF!WdDS7|dsT<9UQCqzhJe8+4kK5km%XvHjm="
    "J(sMgqk-e3v^zjTJayVggoDWMJzTWE4a0T)3l-9P!ydlNePrBA?Xny*@kmBo4W|8$?wEo20v5Uy_5"
)
_IQ3_S = (
    "c-k#d!AiqG5PdVu!e&pqA>uXNMyUCUt<-~hDT4SrX{pfmmf{D9Rs{Q#&TgE;z`Qr}-rMBob#A|%IbF{W(Id*&Lkwq!%0~0(%@Ao{OU0lD_x2OX"
    "CI^OquXIKLt}o^pYnG?L6&oz+9HeSVPSrN(A}t!YmF^Xmp*3Qy-5G8(e|b5Y-VC?q(AA>+32wuC)HmEXp@c1}PT|h83}iuXSwt^ePGkv?U+Lf3"
    "a_=1ov?9@{igP&9v4ypFswx3&TJZ@M2_=SuX>*z&qp%+CoXl)ge8!drA@5Agyn!FG+()?*sDei}n1QT95(J|p-wR7#Aht{0!Hx!aZfy;cl!bD4"
    "D3uqR(zW`GY5;6>@R{_|3X$jRqNR^eu)^e<Ll^vCYlKPU1;QQ+o$IB(hKom+bHx0SXmXXwyZnVo8~6jd#wQ>"
)


@cache
def _grid(points: str, magnitudes: tuple[int, ...], width: int) -> torch.Tensor:
    """The grid as float32 (rows, width)."""
    bits = np.frombuffer(zlib.decompress(base64.b85decode(points)), dtype=np.uint8)
    numbers = np.flatnonzero(np.unpackbits(bits, bitorder="little"))
    digits = numbers[:, None] // len(magnitudes) ** np.arange(width) % len(magnitudes)
    return torch.from_numpy(np.array(magnitudes, dtype=np.float32)[digits])


@cache
def _signs() -> torch.Tensor:
    """A byte's eight signs, lowest bit first, 1 being minus: float32 (256, 8)."""
    return 1 - 2 * fields(torch.arange(256, dtype=torch.uint8).unsqueeze(-1), 1).float()


@cache
def _even_signs() -> torch.Tensor:
    """The same for 7-bit numbers, whose eighth sign makes the number of minuses even: float32 (128, 8)."""
    return _signs()[[i | (i.bit_count() & 1) << 7 for i in range(128)]]


def _rows(table: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    return _there(table, index.device).index_select(0, index.flatten().int())


@cache
def _there(table: torch.Tensor, device: torch.device) -> torch.Tensor:
    """One of the tables above, copied to a device once."""
    return table.to(device)


def _words(x: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Bytes (…, w) read as little-endian words, int32: unsigned 16-bit ones, or 32-bit ones as they are."""
    words = x.clone(memory_format=torch.contiguous_format).view(dtype).int()
    return words & 0xFFFF if dtype == torch.int16 else words


def _scaled(scale: torch.Tensor, grid: torch.Tensor, signs: torch.Tensor, out: torch.Tensor) -> None:
    """out = scale × grid × signs, `scale` (n, g) standing for equal runs of a block, grid and signs (n × 32, 8)."""
    runs = out.view(*scale.shape, -1)
    torch.mul(scale.unsqueeze(-1), grid.view(runs.shape), out=runs).mul_(signs.view(runs.shape))


def iq2_xxs(x: torch.Tensor, out: torch.Tensor) -> None:
    """Per 32 elements four bytes of grid rows, then a word: four 7-bit sign numbers and a 4-bit scale."""
    groups = x[:, 2:].view(len(x), 8, 8)
    word = _words(groups[..., 4:], torch.int32)
    scale = half(x, 0) * (0.5 + (word.squeeze(-1) >> 28 & 15)) * 0.25
    grid = _rows(_grid(_IQ2_XXS, _THREE, 8), groups[..., :4])
    _scaled(scale, grid, _rows(_even_signs(), _seven_bits(word)), out)


def _seven_bits(word: torch.Tensor) -> torch.Tensor:
    """Words (…, 1) → their four low 7-bit fields (…, 4)."""
    return word >> constant((0, 7, 14, 21), torch.int32, word.device) & 127


def iq2_xs(x: torch.Tensor, out: torch.Tensor) -> None:
    """Per 8 elements a 16-bit word: 9 bits of grid row, 7 of signs; per 16 a 4-bit scale."""
    word = _words(x[:, 2:66], torch.int16)
    scale = half(x, 0) * (0.5 + fields(x[:, 66:], 4)) * 0.25
    _scaled(scale, _rows(_grid(_IQ2_XS, _THREE, 8), word & 511), _rows(_even_signs(), word >> 9), out)


def iq2_s(x: torch.Tensor, out: torch.Tensor) -> None:
    """Per 8 elements 8 + 2 bits of grid row and a byte of signs; per 16 a 4-bit scale."""
    index = x[:, 2:34].int() | fields(x[:, 66:74], 2).int() << 8
    scale = half(x, 0) * (0.5 + fields(x[:, 74:], 4)) * 0.25
    _scaled(scale, _rows(_grid(_IQ2_S, _THREE, 8), index), _rows(_signs(), x[:, 34:66]), out)


def iq3_xxs(x: torch.Tensor, out: torch.Tensor) -> None:
    """Per 4 elements a byte of grid row; per 32 a word as in IQ2_XXS."""
    word = _words(x[:, 66:], torch.int32).unsqueeze(-1)
    scale = half(x, 0) * (0.5 + (word.squeeze(-1) >> 28 & 15)) * 0.5
    grid = _rows(_grid(_IQ3_XXS, _EIGHT, 4), x[:, 2:66])
    _scaled(scale, grid, _rows(_even_signs(), _seven_bits(word)), out)


def iq3_s(x: torch.Tensor, out: torch.Tensor) -> None:
    """Per 4 elements 8 + 1 bits of grid row; per 8 a byte of signs; per 32 a 4-bit scale."""
    index = x[:, 2:66].int() | fields(x[:, 66:74], 1).int() << 8
    scale = half(x, 0) * (1 + 2 * fields(x[:, 106:], 4))
    _scaled(scale, _rows(_grid(_IQ3_S, _ODD, 4), index), _rows(_signs(), x[:, 74:106]), out)


def _shifted(scale: torch.Tensor, grid: torch.Tensor, minus: torch.Tensor, out: torch.Tensor) -> None:
    """out = scale × (grid ± 1/8), `scale` (n, g) and `minus` (n, h), booleans, standing for equal runs of a block."""
    torch.add(
        grid.view(*minus.shape, -1), torch.where(minus, -0.125, 0.125).unsqueeze(-1), out=out.view(*minus.shape, -1)
    )
    out.view(*scale.shape, -1).mul_(scale.unsqueeze(-1))


def iq1_s(x: torch.Tensor, out: torch.Tensor) -> None:
    """Per 8 elements 8 + 3 bits of grid row; per 32 a 16-bit word: four times three bits of rows, scale, shift."""
    word = _words(x[:, 34:], torch.int16)
    index = x[:, 2:34].int() | (_three_bits(word) << 8)
    scale = half(x, 0) * (2 * (word >> 12 & 7) + 1)
    _shifted(scale, _rows(_grid(_IQ1_S, _TERNARY, 8), index), word >= 0x8000, out)


def _three_bits(word: torch.Tensor) -> torch.Tensor:
    """Words (n, w) → their four low 3-bit fields, (n, 4 × w)."""
    return (word.unsqueeze(-1) >> constant((0, 3, 6, 9), torch.int32, word.device) & 7).flatten(1)


def iq1_m(x: torch.Tensor, out: torch.Tensor) -> None:
    """Per 8 elements 8 + 3 bits of grid row and a shift; four words: 3-bit scales per 16, the factor in nibbles."""
    word = _words(x[:, 48:], torch.int16)
    nibbles = (word >> 12) << constant((0, 4, 8, 12), torch.int32, word.device)
    factor = nibbles.sum(1, keepdim=True).to(torch.uint16).view(torch.float16).float()
    high = fields(x[:, 32:48], 4)
    index = x[:, :32].int() | (high & 7).int() << 8
    scale = factor * (2 * _three_bits(word) + 1)
    _shifted(scale, _rows(_grid(_IQ1_S, _TERNARY, 8), index), high >= 8, out)


def iq4_nl(x: torch.Tensor, out: torch.Tensor) -> None:
    torch.mul(lookup(IQ4_VALUES, planes(x[:, 2:], 4).view(-1, 32)), half(x, 0), out=out)


def iq4_xs(x: torch.Tensor, out: torch.Tensor) -> None:
    """Per 32 elements a 6-bit scale: two bits in bytes 2–3, four in bytes 4–7."""
    packed = fields(x[:, 4:8], 4) | fields(x[:, 2:4], 2) << 4
    scale = (half(x, 0) * signed(packed, 32)).unsqueeze(-1)
    quants = planes(x[:, 8:].view(len(x), 8, 16), 4).view(-1, 8, 32)
    torch.mul(lookup(IQ4_VALUES, quants), scale, out=out.view(-1, 8, 32))
