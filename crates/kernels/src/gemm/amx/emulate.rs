//! AMX for CPUs that lack it, so that its path is under test everywhere: a handler of illegal-instruction signals that runs the six tile
//! instructions of [`super`] as Intel's reference describes them, subnormals flushed. Anything else illegal ends the process as before.

use std::{
    cell::UnsafeCell,
    sync::atomic::{AtomicU64, Ordering::Relaxed},
};

use half::bf16;

/// Eight tiles of one thread, and whether they are configured.
struct Tiles {
    configured: bool,
    tiles: [[u8; 1024]; 8],
}

thread_local! {
    // Constant and without a destructor: a signal handler may touch it.
    static TILES: UnsafeCell<Tiles> = const { UnsafeCell::new(Tiles { configured: false, tiles: [[0; 1024]; 8] }) };
}

/// How many products of tiles were emulated, on all threads.
pub static PRODUCTS: AtomicU64 = AtomicU64::new(0);

/// Installs the handler, once.
pub fn install() {
    static ONCE: std::sync::Once = std::sync::Once::new();
    ONCE.call_once(|| {
        // SAFETY: a zeroed sigaction is valid, and the handler has the type that SA_SIGINFO asks for.
        unsafe {
            let mut action: libc::sigaction = std::mem::zeroed();
            action.sa_sigaction = handler as *const () as usize;
            // On the thread's own stack: the alternate one, of 8 KiB, is too small where registers are wide and nothing is optimised.
            action.sa_flags = libc::SA_SIGINFO;
            assert_eq!(libc::sigaction(libc::SIGILL, &raw const action, std::ptr::null_mut()), 0);
        }
    });
}

extern "C" fn handler(_: libc::c_int, _: *mut libc::siginfo_t, context: *mut libc::c_void) {
    // SAFETY: the kernel passes a ucontext; `run` reads the instruction that it points to.
    unsafe {
        let registers = &mut (*context.cast::<libc::ucontext_t>()).uc_mcontext.gregs;
        match run(registers) {
            Some(length) => registers[libc::REG_RIP as usize] += length,
            None => {
                // Illegal in earnest: let it strike again.
                libc::signal(libc::SIGILL, libc::SIG_DFL);
            }
        }
    }
}

/// The registers by number, as the encoding has them.
const GENERAL: [i32; 16] = [
    libc::REG_RAX,
    libc::REG_RCX,
    libc::REG_RDX,
    libc::REG_RBX,
    libc::REG_RSP,
    libc::REG_RBP,
    libc::REG_RSI,
    libc::REG_RDI,
    libc::REG_R8,
    libc::REG_R9,
    libc::REG_R10,
    libc::REG_R11,
    libc::REG_R12,
    libc::REG_R13,
    libc::REG_R14,
    libc::REG_R15,
];

/// Runs one tile instruction; `None` if it is none. Returns its length in bytes.
///
/// SAFETY: to be called with the registers of a thread that stopped at an instruction.
unsafe fn run(registers: &[i64; 23]) -> Option<i64> {
    // SAFETY: an instruction lies at RIP; memory operands are those of the code under test; the tiles belong to this thread.
    unsafe {
        let code = registers[libc::REG_RIP as usize] as *const u8;
        let byte = |i: usize| *code.add(i);
        let (b1, b2, opcode, modrm) = (byte(1), byte(2), byte(3), byte(4));
        if byte(0) != 0xC4 || b1 & 31 != 2 || b2 & 0x84 != 0 {
            return None; // not a three-byte VEX prefix of the map 0F38, 128 bits, W0
        }
        let prefix = b2 & 3; // none, 66, F3, F2
        let general = |n: u8| registers[GENERAL[n as usize] as usize] as usize;
        let (mode, reg, rm) = (modrm >> 6, (modrm >> 3 & 7) as usize, modrm & 7);
        let t = &mut *TILES.with(UnsafeCell::get);
        if mode == 3 {
            match (opcode, prefix) {
                (0x49, 0) => t.configured = false,                     // TILERELEASE
                (0x49, 3) if t.configured => t.tiles[reg] = [0; 1024], // TILEZERO
                (0x5C, 2) if t.configured => {
                    PRODUCTS.fetch_add(1, Relaxed);
                    let (a, b) = (t.tiles[rm as usize], t.tiles[usize::from(!(b2 >> 3) & 15)]);
                    dot(&mut t.tiles[reg], &a, &b); // TDPBF16PS
                }
                _ => return None,
            }
            return Some(5);
        }
        let (mut length, mut address, mut stride) = (5, 0, 0);
        if rm == 4 {
            let sib = byte(5);
            length = 6;
            let (x, b) = ((!b1 >> 6 & 1) << 3, (!b1 >> 5 & 1) << 3);
            if mode == 0 && sib & 7 == 5 {
                return None; // no base: the assembler never makes it here
            }
            address += general(sib & 7 | b);
            let index = sib >> 3 & 7 | x;
            if index != 4 {
                stride = general(index) << (sib >> 6);
            }
        } else {
            if mode == 0 && rm == 5 {
                return None; // relative to RIP: the same
            }
            address += general(rm | (!b1 >> 5 & 1) << 3);
        }
        match mode {
            1 => {
                address = address.wrapping_add_signed((byte(length) as i8).into());
                length += 1;
            }
            2 => {
                address = address.wrapping_add_signed(code.add(length).cast::<i32>().read_unaligned() as isize);
                length += 4;
            }
            _ => {}
        }
        match (opcode, prefix) {
            (0x49, 0) => {
                // LDTILECFG: the only configuration that the path uses.
                let bytes = *(address as *const [u8; 64]);
                let whole = (0..8).all(|i| bytes[16 + 2 * i..][..2] == [64, 0] && bytes[48 + i] == 16);
                if bytes[0] != 1 || bytes[1] != 0 || !whole {
                    return None;
                }
                (t.configured, t.tiles) = (true, [[0; 1024]; 8]);
            }
            (0x4B, 3) if t.configured => {
                for (r, row) in t.tiles[reg].chunks_exact_mut(64).enumerate() {
                    std::ptr::copy_nonoverlapping((address + r * stride) as *const u8, row.as_mut_ptr(), 64);
                }
            }
            (0x4B, 2) if t.configured => {
                for (r, row) in t.tiles[reg].chunks_exact(64).enumerate() {
                    std::ptr::copy_nonoverlapping(row.as_ptr(), (address + r * stride) as *mut u8, 64);
                }
            }
            _ => return None,
        }
        Some(length as i64)
    }
}

fn flush(x: f32) -> f32 {
    if x.is_subnormal() { 0.0f32.copysign(x) } else { x }
}

/// `c += a · b`, even and odd products of each pair summed apart by fused multiply-add, then together.
fn dot(c: &mut [u8; 1024], a: &[u8; 1024], b: &[u8; 1024]) {
    let number = |tile: &[u8; 1024], row: usize, i: usize| {
        let at = row * 64 + 2 * i;
        flush(bf16::from_le_bytes([tile[at], tile[at + 1]]).to_f32())
    };
    for m in 0..16 {
        for n in 0..16 {
            let mut sums = [0.0f32; 2];
            for k in 0..16 {
                for (parity, sum) in sums.iter_mut().enumerate() {
                    *sum = flush(number(a, m, 2 * k + parity).mul_add(number(b, k, 2 * n + parity), *sum));
                }
            }
            let at = m * 64 + 4 * n;
            let old = flush(f32::from_le_bytes(c[at..at + 4].try_into().expect("four bytes")));
            c[at..at + 4].copy_from_slice(&flush(old + flush(sums[0] + sums[1])).to_le_bytes());
        }
    }
}
