#!/usr/bin/env python3
"""Write formats/formats.txt: E4M3 and E8M0 as ml_dtypes has them, and power-of-two scales as numpy computes them.

  make_formats.py            needs numpy and ml_dtypes (made with numpy 2.4.6, ml_dtypes 0.6.0)

Lines are pairs of hexadecimal numbers; f32 stands as its bits.
"""
from pathlib import Path

import ml_dtypes
import numpy as np

E4M3, E8M0 = ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e8m0fnu
OUT = Path(__file__).resolve().parent / "formats" / "formats.txt"


def bits(x):
    return np.atleast_1d(np.asarray(x, np.float32)).view(np.uint32)


def section(name, left, right):
    return [f"# {name}"] + [f"{a:x} {b:x}" for a, b in zip(left, right, strict=True)]


def main():
    codes = np.arange(256, dtype=np.uint8)
    lines = section("e4m3 codes", codes, bits(codes.view(E4M3).astype(np.float32)))
    lines += section("e8m0 codes", codes, bits(codes.view(E8M0).astype(np.float32)))

    # Every number, every tie between two, and the f32 on each side; beyond 448 it is clipped first, as ml_dtypes makes NaN of
    # what overflows.
    numbers = codes[:127].view(E4M3).astype(np.float64)
    ties = (numbers[:-1] + numbers[1:]) / 2
    spots = np.concatenate([numbers, ties, [464, 480, 1e30]]).astype(np.float32)
    spots = np.concatenate([spots, np.nextafter(spots, np.float32(np.inf)), np.nextafter(spots, np.float32(-np.inf))])
    spots = np.unique(np.concatenate([spots, -spots]))
    encoded = np.clip(spots, -448, 448).astype(E4M3).view(np.uint8)
    lines += section("e4m3 of f32", bits(spots), encoded)

    maxima = np.float32(448) * np.float32(2) ** np.arange(-15, 60, dtype=np.float32)
    maxima = np.concatenate([maxima, np.nextafter(maxima, np.float32(np.inf)), np.nextafter(maxima, np.float32(0))])
    maxima = np.concatenate([maxima, np.random.default_rng(0).uniform(1e-3, 9, 200).astype(np.float32), [np.float32(0)]])
    scales = np.maximum(maxima, np.float32(1e-4)) / np.float32(448)
    mantissa, exponent = np.frexp(scales)
    powers = np.ldexp(np.float32(1), np.where(mantissa == 0.5, exponent - 1, exponent)).astype(np.float32)
    lines += section("power-of-two scales", bits(maxima), bits(powers))
    OUT.parent.mkdir(exist_ok=True)
    OUT.write_text("\n".join(lines) + "\n")
    print(f"{OUT}: {len(lines)} lines")


if __name__ == "__main__":
    main()
