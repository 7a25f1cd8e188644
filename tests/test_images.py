import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from mmdd_ray.data.images import BadImage, decode_image

MAX_PIXELS = 10_000


def encode(image: Image.Image, kind: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def noise(width: int, height: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))


def quadrants() -> Image.Image:
    """40 x 20: red, green over blue, white."""
    image = Image.new("RGB", (40, 20), "red")
    image.paste("lime", (20, 0, 40, 10))
    image.paste("blue", (0, 10, 20, 20))
    image.paste("white", (20, 10, 40, 20))
    return image


def test_lossless_rgb_comes_back_exactly():
    image = noise(30, 20)
    assert np.array_equal(decode_image(encode(image, "PNG"), max_pixels=MAX_PIXELS), np.asarray(image))


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF"])
def test_every_format_keeps_the_colour(kind):
    rgb = decode_image(encode(Image.new("RGB", (16, 8), (200, 40, 90)), kind), max_pixels=MAX_PIXELS)
    assert rgb.shape == (8, 16, 3)
    assert rgb.dtype == np.uint8
    assert np.abs(rgb.reshape(-1, 3).mean(0) - (200, 40, 90)).max() < 4


def test_cmyk_jpeg_shows_the_colours_it_was_made_from():
    rgb = decode_image(encode(quadrants().convert("CMYK"), "JPEG", quality=95), max_pixels=MAX_PIXELS)
    assert np.abs(rgb[5, 5].astype(int) - (255, 0, 0)).max() < 12
    assert np.abs(rgb[15, 30].astype(int) - (255, 255, 255)).max() < 12


def test_16_bit_grey_is_scaled_and_not_clipped():
    ramp = np.linspace(0, 65535, 256).astype(np.uint16).reshape(16, 16)
    rgb = decode_image(encode(Image.fromarray(ramp), "PNG"), max_pixels=MAX_PIXELS)
    assert np.array_equal(rgb[..., 0].ravel(), np.arange(256))
    assert rgb.mean() == 127.5


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparency_is_composited_on_white(mode):
    image = Image.new("RGBA", (8, 8), (0, 0, 0, 0))
    image.paste((0, 0, 0, 255), (0, 0, 4, 8))
    rgb = decode_image(encode(image.convert(mode), "PNG"), max_pixels=MAX_PIXELS)
    assert rgb[:, :4].max() == 0
    assert rgb[:, 4:].min() == 255


def test_half_transparent_black_on_white_is_mid_grey():
    rgb = decode_image(encode(Image.new("RGBA", (4, 4), (0, 0, 0, 128)), "PNG"), max_pixels=MAX_PIXELS)
    assert np.unique(rgb).tolist() == [127]


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_undone(orientation):
    stored_as = {  # how a camera stores an upright scene under each tag value
        1: None,
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }[orientation]
    scene = quadrants()
    exif = Image.Exif()
    exif[274] = orientation
    stored = scene if stored_as is None else scene.transpose(stored_as)
    assert np.array_equal(
        decode_image(encode(stored, "PNG", exif=exif), max_pixels=MAX_PIXELS), np.asarray(scene)
    )


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_damaged_exif_does_not_cost_the_image():
    image = noise(8, 8)
    broken = encode(image, "PNG", exif=b"Exif\x00\x00MM\x00*\xff\xff\xff\xff garbage")
    assert np.array_equal(decode_image(broken, max_pixels=MAX_PIXELS), np.asarray(image))


@pytest.mark.parametrize("kind", ["GIF", "WEBP"])
def test_of_an_animation_the_first_frame_is_taken(kind):
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    data = encode(frames[0], kind, save_all=True, append_images=frames[1:], duration=10)
    rgb = decode_image(data, max_pixels=MAX_PIXELS)
    assert rgb[..., 0].min() > 240
    assert rgb[..., 2].max() < 15


def png_header(width: int, height: int, bits: int = 8, colour_type: int = 2) -> bytes:
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, bits, colour_type, 0, 0, 0)
    chunk = struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header))
    idat = b"IDAT" + zlib.compress(b"\0" * 100)
    pixels = struct.pack(">I", len(idat) - 4) + idat + struct.pack(">I", zlib.crc32(idat))
    return b"\x89PNG\r\n\x1a\n" + chunk + pixels


@pytest.mark.filterwarnings("ignore:Image size")  # what Pillow says up to twice the limit
@pytest.mark.parametrize(("width", "height"), [(100_000, 100_000), (101, 100)])
def test_the_declared_size_is_checked_before_decoding(width, height):
    with pytest.raises(BadImage, match=r"^too many pixels$"):
        decode_image(png_header(width, height), max_pixels=10_000)


@pytest.mark.filterwarnings("ignore:Image size")
def test_a_limit_above_pillows_own_is_the_only_one():
    pillows = Image.MAX_IMAGE_PIXELS
    assert pillows is not None
    assert 2 * pillows < 14_000 * 13_000
    large = png_header(14_000, 13_000, bits=1, colour_type=0)
    with pytest.raises(BadImage, match=r"^undecodable image$"):  # its pixels are missing, so none is decoded
        decode_image(large, max_pixels=200_000_000)
    assert pillows == Image.MAX_IMAGE_PIXELS
    with pytest.raises(BadImage, match=r"^too many pixels$"):
        decode_image(large, max_pixels=180_000_000)
    assert pillows == Image.MAX_IMAGE_PIXELS


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF"])
@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_truncated_images_are_refused(kind, share):
    data = encode(noise(64, 64), kind)
    with pytest.raises(BadImage):
        decode_image(data[: int(share * len(data))], max_pixels=MAX_PIXELS)


@pytest.mark.parametrize("data", [b"", b"hello", b"<html>not found</html>", b"%!PS-Adobe-3.0 EPSF-3.0\n"])
def test_bytes_that_are_no_image_are_refused(data):
    with pytest.raises(BadImage, match=r"^not an image$"):
        decode_image(data, max_pixels=MAX_PIXELS)


@pytest.mark.filterwarnings("ignore")  # Pillow remarks on every oddity
def test_random_damage_raises_nothing_but_bad_image():
    rng = np.random.default_rng(1)
    exif = Image.Exif()
    exif[274] = 6
    originals = [encode(noise(24, 24), kind) for kind in ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")]
    originals.append(encode(noise(24, 24), "JPEG", exif=exif))
    refused = 0
    for original in originals:
        for _ in range(150):
            damaged = bytearray(original)
            for place in rng.integers(0, min(len(damaged), 200), size=4):
                damaged[place] = rng.integers(256)
            try:
                decode_image(bytes(damaged), max_pixels=MAX_PIXELS, image_px=8)
            except BadImage:
                refused += 1
    assert refused > 100


def test_resizing_is_the_shorter_side_to_size_then_the_centre_crop():
    image = noise(60, 20)
    reference = image.resize((30, 10), Image.Resampling.BICUBIC).crop((10, 0, 20, 10))
    rgb = decode_image(encode(image, "PNG"), max_pixels=MAX_PIXELS, image_px=10)
    assert np.array_equal(rgb, np.asarray(reference))


def test_resizing_a_sliver_stays_small():
    assert decode_image(encode(noise(1, 9000), "PNG"), max_pixels=MAX_PIXELS, image_px=16).shape == (
        16,
        16,
        3,
    )


def test_resizing_keeps_the_mean_brightness():
    image = noise(64, 64)
    rgb = decode_image(encode(image, "PNG"), max_pixels=MAX_PIXELS, image_px=16)
    assert abs(rgb.mean() - np.asarray(image).mean()) < 1.0
