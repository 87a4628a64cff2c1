// A page opened as a file may not start a worker, and the search runs in one. Here the worker's script runs in a hidden frame.
if (location.protocol === "file:") {
  window.IFrameWorker = window.Worker = class extends EventTarget {
    #frame = document.createElement("iframe");
    #started;

    constructor(url) {
      super();
      this.#frame.hidden = true;
      document.body.append(this.#frame);
      const inside = this.#frame.contentWindow;
      inside.postMessage = (data) => this.#deliver(this, data);
      inside.importScripts = (...urls) => Promise.all(urls.map((url) => this.#load(url)));
      this.#started = this.#load(url);
    }

    postMessage(data) {
      this.#started.then(() => this.#deliver(this.#frame.contentWindow, data));
    }

    terminate() {
      this.#frame.remove();
    }

    #load(url) {
      return new Promise((resolve, reject) => {
        const script = this.#frame.contentDocument.createElement("script");
        Object.assign(script, { src: new URL(url, location), onload: resolve, onerror: reject });
        this.#frame.contentDocument.body.append(script);
      });
    }

    #deliver(target, data) {
      const message = new MessageEvent("message", { data: structuredClone(data) });
      setTimeout(() => target.onmessage?.(message) ?? target.dispatchEvent(message));
    }
  };
}
