// Pictures by their addresses: each is loaded once.

export class Pictures {
  /** loaded: called whenever a picture has come. */
  constructor(loaded) {
    this.loaded = loaded;
    this.known = new Map();
  }

  /** The image of an address; null while it is on its way, and where there is none. */
  get(address) {
    if (!address) return null;
    if (!this.known.has(address)) {
      const image = new Image();
      image.onload = this.loaded;
      image.src = address;
      this.known.set(address, image);
    }
    const image = this.known.get(address);
    return image.complete && image.naturalWidth ? image : null;
  }
}
