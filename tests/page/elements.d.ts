// The pages look elements up by id, and TypeScript can't know which kind each is: these are the
// properties that they use of their inputs, dialogs, links and pictures.
interface EventTarget {
  value: any;
  files: any;
}
interface Element {
  click(): void;
  dataset: DOMStringMap;
  hidden: any;
}
interface HTMLElement {
  alt: any;
  checked: any;
  close(value?: string): void;
  download: any;
  href: any;
  returnValue: any;
  showModal(): void;
  src: any;
  validity: any;
}
