//! CityHash64 of CityHash 1.0, which CatBoost keeps categories by. Source: the algorithm by Geoff Pike and Jyrki
//! Alakuijala, 2011; later releases of it give other values.

const K0: u64 = 0xc3a5_c85c_97cb_3127;
const K1: u64 = 0xb492_b66f_be98_f273;
const K2: u64 = 0x9ae1_6a3b_2f90_404f;
const K3: u64 = 0xc949_d7c7_509e_6557;

/// The hash of `text`.
pub(crate) fn city_hash_64(text: &[u8]) -> u64 {
    match text.len() {
        0..=16 => up_to_16(text),
        17..=32 => up_to_32(text),
        33..=64 => up_to_64(text),
        _ => long(text),
    }
}

fn word(text: &[u8], at: usize) -> u64 {
    text[at..].first_chunk().map_or(0, |bytes| u64::from_le_bytes(*bytes))
}

fn half(text: &[u8], at: usize) -> u64 {
    text[at..].first_chunk().map_or(0, |bytes| u64::from(u32::from_le_bytes(*bytes)))
}

fn mixed(value: u64) -> u64 {
    value ^ value >> 47
}

fn pair(low: u64, high: u64) -> u64 {
    const MULTIPLIER: u64 = 0x9ddf_ea08_eb38_2d69;
    let a = mixed((low ^ high).wrapping_mul(MULTIPLIER));
    mixed((high ^ a).wrapping_mul(MULTIPLIER)).wrapping_mul(MULTIPLIER)
}

fn up_to_16(text: &[u8]) -> u64 {
    let length = text.len() as u64;
    match text.len() {
        9.. => {
            let (first, last) = (word(text, 0), word(text, text.len() - 8));
            pair(first, last.wrapping_add(length).rotate_right(length as u32)) ^ last
        }
        4.. => pair(length.wrapping_add(half(text, 0) << 3), half(text, text.len() - 4)),
        1.. => {
            let byte = |at: usize| u64::from(text[at]);
            let y = byte(0) + (byte(text.len() / 2) << 8);
            let z = length + (byte(text.len() - 1) << 2);
            mixed(y.wrapping_mul(K2) ^ z.wrapping_mul(K3)).wrapping_mul(K2)
        }
        0 => K2,
    }
}

fn up_to_32(text: &[u8]) -> u64 {
    let length = text.len();
    let a = word(text, 0).wrapping_mul(K1);
    let b = word(text, 8);
    let c = word(text, length - 8).wrapping_mul(K2);
    let d = word(text, length - 16).wrapping_mul(K0);
    let low = a.wrapping_sub(b).rotate_right(43).wrapping_add(c.rotate_right(30)).wrapping_add(d);
    let high = a.wrapping_add((b ^ K3).rotate_right(20)).wrapping_sub(c).wrapping_add(length as u64);
    pair(low, high)
}

fn up_to_64(text: &[u8]) -> u64 {
    let length = text.len();
    let side = |from: usize, z: u64, a: u64| {
        let b = a.wrapping_add(z).rotate_right(52);
        let c = a.rotate_right(37);
        let a = a.wrapping_add(word(text, from + 8));
        let c = c.wrapping_add(a.rotate_right(7));
        let a = a.wrapping_add(word(text, from + 16));
        (a.wrapping_add(z), b.wrapping_add(a.rotate_right(31)).wrapping_add(c))
    };
    let start = word(text, length - 16).wrapping_add(length as u64).wrapping_mul(K0);
    let v = side(0, word(text, 24), word(text, 0).wrapping_add(start));
    let w = side(length - 32, word(text, length - 8), word(text, 16).wrapping_add(word(text, length - 32)));
    let low = v.0.wrapping_add(w.1).wrapping_mul(K2);
    let r = mixed(low.wrapping_add(w.0.wrapping_add(v.1).wrapping_mul(K0)));
    mixed(r.wrapping_mul(K0).wrapping_add(v.1)).wrapping_mul(K2)
}

fn weak(text: &[u8], from: usize, a: u64, b: u64) -> (u64, u64) {
    let [w, x, y, z] = [0, 8, 16, 24].map(|at| word(text, from + at));
    let a = a.wrapping_add(w);
    let b = b.wrapping_add(a).wrapping_add(z).rotate_right(21);
    let sum = a.wrapping_add(x).wrapping_add(y);
    (sum.wrapping_add(z), b.wrapping_add(sum.rotate_right(44)).wrapping_add(a))
}

fn long(text: &[u8]) -> u64 {
    let length = text.len();
    let mut x = word(text, 0);
    let mut y = word(text, length - 16) ^ K1;
    let mut z = word(text, length - 56) ^ K0;
    let mut v = weak(text, length - 64, length as u64, y);
    let mut w = weak(text, length - 32, (length as u64).wrapping_mul(K1), K0);
    z = z.wrapping_add(mixed(v.1).wrapping_mul(K1));
    x = z.wrapping_add(x).rotate_right(39).wrapping_mul(K1);
    y = y.rotate_right(33).wrapping_mul(K1);
    for at in (0..(length - 1) / 64 * 64).step_by(64) {
        let next = x.wrapping_add(y).wrapping_add(v.0).wrapping_add(word(text, at + 16));
        x = next.rotate_right(37).wrapping_mul(K1) ^ w.1;
        let next = y.wrapping_add(v.1).wrapping_add(word(text, at + 48));
        y = next.rotate_right(42).wrapping_mul(K1) ^ v.0;
        z = (z ^ w.0).rotate_right(33);
        v = weak(text, at, v.1.wrapping_mul(K1), x.wrapping_add(w.0));
        w = weak(text, at + 32, z.wrapping_add(w.1), y);
        std::mem::swap(&mut z, &mut x);
    }
    pair(
        pair(v.0, w.0).wrapping_add(mixed(y).wrapping_mul(K1)).wrapping_add(z),
        pair(v.1, w.1).wrapping_add(x),
    )
}
