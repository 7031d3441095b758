/** Lets `added` run after the host's own call of this method, with the same arguments; returns what the host's returns. */
export function chain(node, name, added) {
  const before = node[name];
  node[name] = function (...given) {
    const result = before?.apply(this, given);
    added(...given);
    return result;
  };
}
