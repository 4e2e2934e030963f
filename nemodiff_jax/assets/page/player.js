// Which pass is shown, and when the next one is.

const FRAME = 1000 / 30;

/** A function that draws soon, at most 30 times a second. */
export function throttled(draw) {
  let asked = false;
  let last = -Infinity;
  function frame(now) {
    if (now - last < FRAME - 1) return requestAnimationFrame(frame);
    asked = false;
    last = now;
    draw(now);
  }
  return () => {
    if (!asked) requestAnimationFrame(frame);
    asked = true;
  };
}

/** Whether the reader wants things to stand still. */
export const still = () => matchMedia("(prefers-reduced-motion: reduce)").matches;

/**
 * Plays passes: `at` of them are shown, and behind the last one the bare text.
 * Without a pace it shows what there is.
 */
export class Player {
  /** A player at the start; `pace` in passes a second, 0: as they come. */
  constructor(pace, playing = true) {
    this.at = 0;
    this.pace = pace;
    this.playing = playing;
    this.last = 0; // Passes that there are.
    this.open = true; // Whether more may come.
    this.since = null;
  }

  /** The place behind the last pass. */
  get end() {
    return this.last + 1;
  }

  get ended() {
    return !this.open && this.at >= this.end;
  }

  /** Tells it what there is. */
  grow(last, open) {
    this.last = last;
    this.open = open;
  }

  /** Goes on in time; whether a next frame may show something else. */
  advance(now) {
    const most = this.open ? this.last : this.end;
    if (!this.playing || this.at >= most) {
      this.since = now;
    } else if (!this.pace) {
      this.at = most;
    } else {
      const due = Math.floor(((now - (this.since ?? now)) * this.pace) / 1000);
      if (due > 0 || this.since === null) this.since = now;
      this.at = Math.min(most, this.at + due);
    }
    if (this.playing && this.ended) this.playing = false;
    return this.playing && this.at < (this.open ? this.last : this.end);
  }

  /** Plays from here, or from the start where it is at its end; or pauses. */
  toggle() {
    if (!this.playing && this.ended) this.at = 0;
    this.playing = !this.playing;
    this.pace ||= this.open ? 0 : 6; // A replay has a pace.
    this.since = null;
  }

  /** Shows a pass, and stays there. */
  go(at) {
    this.playing = false;
    this.at = Math.min(Math.max(at, 0), this.end);
  }
}
